"""The audit log."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict


class AuditEntryObject(TypedDict):
    """A change that a request made, or tried to: ``outcome`` is ``done``, or the status of the answer."""

    object: Literal["audit.entry"]
    id: int
    at: float
    actor: str
    key_id: str
    action: str
    target: str
    outcome: str
    request_id: str | None
    remote: str | None
