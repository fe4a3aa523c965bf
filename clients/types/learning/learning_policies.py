"""Learning policies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from graftwork.clients.types.learning.rounds import Round


@dataclass(frozen=True, kw_only=True, slots=True)
class LearningPolicy:
    """The learning policy of an adapter, and its state.

    A round starts after ``after`` new judgements, or every ``every_days`` days with at least ``at_least`` of them; None
    turns a trigger off. ``experiment`` has the settings of the experiment that a candidate has to win; None: a person
    decides. ``judgements`` is the number of new ones; ``waits_for`` says what is missing unless a round is
    ``due``.
    """

    adapter: str
    after: int | None
    every_days: float | None
    at_least: int
    control_every: int | None
    method: str
    hyperparameters: Mapping[str, Any]
    actor: str
    created_at: datetime
    updated_at: datetime
    judgements: int
    due: bool
    waits_for: str | None
    rounds: int
    next_is_control: bool
    last_round: Round | None = None
    experiment: Mapping[str, Any] | None = None
