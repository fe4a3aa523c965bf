"""API keys."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict


class LimitsObject(TypedDict):
    """The limits of a key or an adapter; null: there is none."""

    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrent: int | None
    tokens_per_day: int | None
    tokens_per_month: int | None


class UsageCountsObject(TypedDict):
    """Requests, and tokens of their prompts and answers."""

    requests: int
    tokens: int


class StandingObject(TypedDict):
    """What was used in the last 60 seconds, today and this month (in UTC), and requests that are under way."""

    minute: UsageCountsObject
    day: UsageCountsObject
    month: UsageCountsObject
    open: int


class KeyUsageObject(StandingObject):
    """What a key used."""

    object: Literal["key.usage"]
    id: str


class KeyObject(TypedDict):
    """An API key. ``secret`` is there once: in the answer that created or rotated it. ``adapters`` null: all."""

    object: Literal["key"]
    id: str
    name: str
    role: str
    created_at: int
    expires_at: int | None
    adapters: list[str] | None
    limits: LimitsObject
    rotated_at: int | None
    previous_until: int | None
    revoked_at: int | None
    secret: NotRequired[str]
