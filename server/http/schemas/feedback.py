"""Feedback on answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from typing_extensions import TypedDict


class FeedbackObject(TypedDict):
    """Feedback on one choice of an answer. ``adapter`` is the version that was rated, or the base's id.

    ``episode``: it judges all answers of that episode, of which this is the last. ``asked``: a random draw had marked
    the answer, so that its user was asked. ``id`` is null while it waits for the database, which is away.
    """

    object: Literal["feedback"]
    id: int | None
    at: float
    interaction_id: str
    adapter: str
    experiment: str | None
    arm: str | None
    probability: float | None
    unit: str | None
    episode: str | None
    asked: bool
    choice: int
    thumb: str | None
    score: float | None
    correction: str | None
    preferred_over: str | None
    preferred_over_choice: int | None
    comment: str | None
    metadata: Mapping[str, str] | None
    user: str | None
    key_id: str | None
    erased_at: float | None
