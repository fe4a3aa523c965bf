"""The audit log."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditEntry:
    """A change that a request made, or tried to: ``outcome`` is ``done``, or the status of the answer."""

    id: int
    at: datetime
    actor: str
    key_id: str
    action: str
    target: str
    outcome: str
    request_id: str | None = None
    remote: str | None = None
