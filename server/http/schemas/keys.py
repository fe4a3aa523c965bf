"""API keys."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict


class KeyObject(TypedDict):
    """An API key. ``secret`` is there once: in the answer that created it."""

    object: Literal["key"]
    id: str
    name: str
    role: str
    created_at: int
    revoked_at: int | None
    secret: NotRequired[str]
