"""A round of learning as a record: what it learned from, its job, its candidate, how that was judged, what was decided.

::

    collecting ─▶ training ─▶ gating ─┬─▶ experimenting ─────┬─▶ promoted
         │            │          │    └─▶ awaiting_decision ─┴─▶ set_aside
         └────────────┴──────────┴─▶ failed, cancelled             (any of them: undone)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, get_args

from graftwork.adapters.learning.gate_results import GateSummary

RoundState = Literal[
    "collecting",
    "training",
    "gating",
    "experimenting",
    "awaiting_decision",
    "promoted",
    "set_aside",
    "failed",
    "cancelled",
    "undone",
]
STATES: Final[tuple[RoundState, ...]] = get_args(RoundState)
ENDED_STATES: Final[frozenset[RoundState]] = frozenset({"promoted", "set_aside", "failed", "cancelled", "undone"})
JOB_STATES: Final[frozenset[RoundState]] = frozenset({"collecting", "training", "gating"})
"""States in which a round waits for its job."""

UNDER_WAY_STATES: Final[frozenset[RoundState]] = JOB_STATES | {"experimenting"}
"""States in which no other round of the adapter begins."""


@dataclass(frozen=True, kw_only=True)
class RoundDecision:
    """What was decided about a round's candidate.

    Attributes:
        by: Who decided: a key's name, or ``keeper``.
        at: When, in Unix seconds.
        reason: In words, if one was given.
        replaced: The version that was live before the candidate.
    """

    by: str
    at: float
    reason: str | None = None
    replaced: str | None = None


@dataclass(frozen=True, kw_only=True)
class Round:
    """A round of learning.

    Attributes:
        id: ``round-…``.
        adapter: The adapter that learns.
        number: Counts the adapter's rounds from 1.
        state: How far it is.
        reason: Why it is in this state, in words.
        control: It begins with the base and learns everything again.
        continues: The version that is trained further; ``None``: the base.
        live: The live version when it began.
        judgements: The new judgements that it began with, by kind.
        policy: The learning policy then, as it is stored.
        job: Its job.
        data_digest: Of what it learned from, once its candidate is registered.
        rows: How many rows were learned from, replayed, held out and left out, once that is known.
        candidate: The version that came of it.
        gates: What the gates said of that; ``None``: not evaluated, or not yet.
        experiment: The name of its experiment.
        decision: What was decided; ``None`` while nothing is.
        created_by: Who began it: a key's name, or ``keeper``.
        ended_at: When it got a state in which it stays, unless it is undone.
    """

    id: str
    adapter: str
    number: int
    state: RoundState
    reason: str | None
    control: bool
    continues: str | None
    live: str
    judgements: Mapping[str, int]
    policy: Mapping[str, Any]
    job: str
    data_digest: str | None = None
    rows: Mapping[str, int] | None = None
    candidate: str | None = None
    gates: GateSummary | None = None
    experiment: str | None = None
    decision: RoundDecision | None = None
    created_by: str
    created_at: datetime
    updated_at: datetime
    ended_at: datetime | None = None

    @property
    def ended(self) -> bool:
        """Whether it stays in its state, unless it is undone."""
        return self.state in ENDED_STATES
