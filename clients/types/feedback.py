"""Feedback on answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Feedback:
    """What somebody said of one choice of an answer. ``adapter`` is the version that was rated, or the base's id.

    With ``erased_at``, what had been written in words was erased then.
    """

    id: int
    at: datetime
    interaction_id: str
    adapter: str
    choice: int = 0
    thumb: str | None = None
    score: float | None = None
    correction: str | None = None
    preferred_over: str | None = None
    preferred_over_choice: int | None = None
    comment: str | None = None
    metadata: Mapping[str, str] | None = None
    user: str | None = None
    experiment: str | None = None
    arm: str | None = None
    probability: float | None = None
    unit: str | None = None
    key_id: str | None = None
    erased_at: datetime | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SentFeedback(Feedback):
    """The feedback that a call ended in. ``created`` is false when its idempotency key had said it already."""

    created: bool
