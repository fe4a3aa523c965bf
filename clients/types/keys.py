"""API keys."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The limits of a key; ``None``: there is none."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class UsageCounts:
    """Requests, and tokens of their prompts and answers."""

    requests: int
    tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyUsage:
    """What a key used: in the last 60 seconds, today and this month (in UTC), and requests that are under way."""

    id: str
    minute: UsageCounts
    day: UsageCounts
    month: UsageCounts
    open: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """An API key. ``secret`` is only set in the response that creates or rotates it; ``adapters`` ``None``: all."""

    id: str
    name: str
    role: str
    created_at: datetime
    expires_at: datetime | None = None
    adapters: tuple[str, ...] | None = None
    limits: Limits = Limits()
    rotated_at: datetime | None = None
    previous_until: datetime | None = None
    secret: str | None = None
    revoked_at: datetime | None = None
