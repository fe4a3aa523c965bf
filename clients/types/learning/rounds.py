"""Rounds of learning.

``state`` is a plain string, since its values may grow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

ENDED: Final = frozenset({"promoted", "set_aside", "failed", "cancelled", "undone"})
JOB_STATES: Final = frozenset({"collecting", "training", "gating"})


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundGates:
    """What the gates said of a round's candidate: ``pass``, ``refuse`` (``refusals`` says why) or ``inconclusive``,
    which takes an experiment (``doubts`` says why)."""

    outcome: str
    refusals: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundDecision:
    """What was decided about a round's candidate; ``replaced`` is the version that was live before it."""

    by: str
    at: datetime
    reason: str | None = None
    replaced: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """A round of learning: what it learned from, its job, its candidate, and what was decided.

    ``control`` is whether it trains from the base; otherwise ``continues`` is the version that it trains further.
    ``gates`` is None if its candidate was not held against gates (yet).
    """

    id: str
    adapter: str
    number: int
    state: str
    control: bool
    live: str
    judgements: Mapping[str, int]
    policy: Mapping[str, Any]
    job: str
    created_by: str
    created_at: datetime
    updated_at: datetime
    reason: str | None = None
    continues: str | None = None
    data_digest: str | None = None
    rows: Mapping[str, int] | None = None
    candidate: str | None = None
    gates: RoundGates | None = None
    experiment: str | None = None
    decision: RoundDecision | None = None
    ended_at: datetime | None = None

    @property
    def ended(self) -> bool:
        """Whether it stays in its state, unless it is undone."""
        return self.state in ENDED


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundPlan:
    """What the next round of an adapter would be; ``waits_for`` says what is missing unless it is ``due``."""

    adapter: str
    number: int
    control: bool
    live: str
    judgements: Mapping[str, int]
    due: bool
    policy: Mapping[str, Any]
    continues: str | None = None
    waits_for: str | None = None
