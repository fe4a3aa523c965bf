"""Learning policies and their rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from graftwork.clients.types.jobs import ENDED


@dataclass(frozen=True, kw_only=True, slots=True)
class LearningRound:
    """A round of a learning policy: its job and the result.

    ``control`` is whether it trained from the base; otherwise ``continues`` is the version that it trained further.
    ``gates`` is what its version's gates said: ``pass``, ``refuse`` (``refusals`` says why) or ``inconclusive``, which
    takes an experiment (``doubts`` says why); None if it was not evaluated (yet).
    """

    number: int
    job: str
    control: bool
    status: str
    submitted_at: datetime
    continues: str | None = None
    finished_at: datetime | None = None
    version: str | None = None
    gates: str | None = None
    gates_passed: bool | None = None
    refusals: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    error: str | None = None

    @property
    def ended(self) -> bool:
        """Whether its job has ended."""
        return self.status in ENDED


@dataclass(frozen=True, kw_only=True, slots=True)
class LearningPolicy:
    """The learning policy of an adapter, and its state.

    A round starts after ``after`` new judgements, or every ``every_days`` days with at least ``at_least`` of them; None
    turns a trigger off. ``judgements`` is the number of new ones; ``waits_for`` says what is missing unless a round is
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
    last_round: LearningRound | None
