"""Feedback on answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Feedback:
    """Feedback on a choice of an answer. ``adapter`` is the version that answered, or the base's id.

    With ``episode`` it judges all answers of that episode, of which this is the last.
    ``asked`` if a random draw had marked the answer, so that its user was asked. If ``erased_at`` is set, its texts
    were erased at that time. ``id`` is None in the answer of a server whose database is away: it is kept until then.
    """

    id: int | None
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
    episode: str | None = None
    asked: bool = False
    key_id: str | None = None
    erased_at: datetime | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SentFeedback(Feedback):
    """The stored feedback. ``created`` is False if feedback with the same idempotency key existed already."""

    created: bool
