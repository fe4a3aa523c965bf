"""Learning policies and their rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from graftwork.clients.types.jobs import ENDED


@dataclass(frozen=True, kw_only=True, slots=True)
class LearningRound:
    """One round of a learning policy: its job, and what came of it. ``control``: it began with the base;
    ``continues`` is the version that it continued otherwise. ``gates_passed`` ``None``: held against none (yet)."""

    number: int
    job: str
    control: bool
    status: str
    submitted_at: datetime
    continues: str | None = None
    finished_at: datetime | None = None
    version: str | None = None
    gates_passed: bool | None = None
    refusals: tuple[str, ...] = ()
    error: str | None = None

    @property
    def ended(self) -> bool:
        return self.status in ENDED


@dataclass(frozen=True, kw_only=True, slots=True)
class LearningPolicy:
    """When an adapter learns by itself: ``after`` so many new judgements, or ``every_days`` with ``at_least`` so many;
    ``None`` is off. And how it stands: the new ``judgements``, what it ``waits_for`` unless a round is ``due``."""

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
