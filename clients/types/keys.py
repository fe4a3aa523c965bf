"""API keys."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """An API key. ``secret`` is only set in the response that creates it."""

    id: str
    name: str
    role: str
    created_at: datetime
    secret: str | None = None
    revoked_at: datetime | None = None
