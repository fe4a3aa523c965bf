"""The JSON of answers: learning policies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from typing_extensions import TypedDict

from graftwork.server.http.schemas.rounds import RoundObject


class LearningPolicyObject(TypedDict):
    """A round begins ``after`` so many new judgements, or ``every_days`` with ``at_least`` so many; null is off."""

    object: Literal["learning_policy"]
    adapter: str
    after: int | None
    every_days: float | None
    at_least: int
    control_every: int | None
    method: str
    hyperparameters: Mapping[str, Any]
    experiment: Mapping[str, Any] | None
    actor: str
    created_at: float
    updated_at: float
    judgements: int
    due: bool
    waits_for: str | None
    rounds: int
    next_is_control: bool
    last_round: RoundObject | None
