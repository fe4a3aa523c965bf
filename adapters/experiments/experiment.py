"""An experiment as a record: its plan, its epochs of traffic splits, its events and its outcome."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from graftwork.adapters.experiments.assignment import Split, bucket
from graftwork.adapters.experiments.plan import Arm, ExperimentPlan

ExperimentAction = Literal["start", "weights", "rollback", "advice", "alarm", "stop"]
Decision = Literal["promoted", "harm", "guardrail", "undecided", "stopped"]

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """From ``at`` until the next epoch, traffic is split like this. ``number`` counts from 1."""

    number: int
    at: datetime
    split: Split


@dataclass(frozen=True, kw_only=True)
class ExperimentOutcome:
    """How an experiment ended: the decision, the arm that it is about, the reason, who decided, the last reading."""

    decision: Decision
    arm: str | None
    reason: str
    actor: str
    reading: Json | None


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """An experiment; it runs until it has an outcome.

    ``salt`` makes its assignment independent of other experiments.
    """

    name: str
    plan: ExperimentPlan
    salt: str
    started_at: datetime
    started_by: str
    epochs: tuple[Epoch, ...]
    ended_at: datetime | None = None
    outcome: ExperimentOutcome | None = None

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.ended_at is None

    @property
    def weights(self) -> dict[str, float]:
        """The current share of every arm."""
        return self.epochs[-1].split.weights

    def weight(self, arm: str) -> float:
        """The current share of an arm; 0 for a shadow arm."""
        return self.weights.get(arm, 0.0)

    def assigned_arm(self, unit: str) -> str:
        """The arm that a unit is assigned now: the same one in every process."""
        return self.epochs[-1].split.arm_at(bucket(self.salt, unit))


@dataclass(frozen=True, kw_only=True)
class ExperimentEvent:
    """One entry of an experiment's history."""

    id: int
    at: datetime
    experiment: str
    action: ExperimentAction
    arm: str | None
    actor: str
    reason: str | None
    details: Json | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """The arm that an experiment assigned to a request, and the probability of that."""

    experiment: str
    arm: Arm
    probability: float
