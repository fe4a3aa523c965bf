"""API keys."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """An API key. ``secret`` is there once: in the answer that created it."""

    id: str
    name: str
    role: str
    created_at: datetime
    secret: str | None = None
    revoked_at: datetime | None = None
