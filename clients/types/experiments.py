"""Experiments and their readings.

Fields whose set of values may grow (``status``, ``decision``, ``action``) are plain strings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentMetric:
    """A metric. ``label`` is its name in readings; ``goal`` is ``up`` if higher is better, else ``down``."""

    name: str
    label: str
    goal: str
    over: float | None = None
    range: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentArm:
    """An arm: a version, or the base, with its settings.

    ``adapter`` is the id of the version or the base. ``weight`` is the arm's current share of the units, 0 to 1. A
    shadow arm has none; it gets copies of the share ``shadow`` of requests. ``joined`` is the number of the epoch with
    which it joined the running experiment, ``alpha`` the error rate at which a treatment is compared.
    """

    name: str
    version: int | None
    adapter: str
    alias: str | None = None
    control: bool = False
    weight: float | None = None
    shadow: float | None = None
    system: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    joined: int | None = None
    alpha: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentGuardrail:
    """A guardrail: no treatment may be worse than ``limit``, or worse than the control by more than ``margin``."""

    metric: ExperimentMetric
    limit: float | None = None
    margin: float | None = None
    alpha: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentDecision:
    """The decision rule of an experiment; ``automatic`` if the server applies its decision."""

    promote_above: float | None
    stop_below: float | None
    max_units: int | None
    until: datetime | None
    automatic: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentRamp:
    """The successive weights of a treatment."""

    weights: tuple[float, ...]
    min_units: int
    min_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentEpoch:
    """A period with constant weights of the arms; ``at`` is its beginning."""

    number: int
    at: datetime
    weights: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmReading:
    """The statistics of an arm. ``mean`` and its confidence interval, ``lower`` to ``upper``, are those of the primary
    metric over ``judged`` units."""

    arm: str
    judged: int
    mean: float | None
    lower: float | None
    upper: float | None
    weight: float | None = None
    requests: int = 0
    units: int = 0
    means: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmComparison:
    """The difference of a treatment to the control, with an anytime-valid confidence interval; None without data.

    ``explained`` is the share of the outcomes' variance that the units' past explains.
    """

    arm: str
    units: int
    difference: float | None
    lower: float | None
    upper: float | None
    improvement_lower: float | None = None
    improvement_upper: float | None = None
    explained: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardrailReading:
    """The state of a guardrail for a treatment. It is breached once ``evidence`` has reached ``threshold``."""

    arm: str
    metric: str
    limit: float | None
    margin: float | None
    observations: int
    evidence: float
    threshold: float
    breached: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRatio:
    """The test for sample ratio mismatch, of all units and of units with feedback."""

    evidence: float
    evidence_rated: float | None
    threshold: float
    mismatch: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class ShadowReading:
    """The statistics of a shadow arm: its requests, and its answers compared with those that users got."""

    arm: str
    sampled: int
    answered: int
    errors: int
    pairs: int
    identical: float | None
    agreement: float | None
    length_ratio: float | None
    latency_ratio: float | None
    preferred: int = 0
    rejected: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentReading:
    """The statistics of an experiment at one time. ``waiting`` units count when their windows have ended, the first of
    them at ``next_at``. ``learned`` is the number of units excluded because a version had learned from them."""

    at: datetime | None = None
    units: int
    waiting: int = 0
    next_at: datetime | None = None
    learned: int
    arms: tuple[ArmReading, ...]
    comparisons: tuple[ArmComparison, ...]
    guardrails: tuple[GuardrailReading, ...]
    sample_ratio: SampleRatio
    shadows: tuple[ShadowReading, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadingPoint:
    """The main statistics of an experiment at an earlier time, for charts."""

    at: datetime
    units: int
    arms: tuple[ArmReading, ...]
    comparisons: tuple[ArmComparison, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentOutcome:
    """The outcome of an experiment. ``decision`` is promoted, harm, guardrail, undecided or stopped."""

    decision: str
    arm: str | None
    reason: str
    actor: str
    reading: ExperimentReading | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentEvent:
    """An event of an experiment. ``action`` is start, weights, rollback, advice, alarm or stop."""

    id: int
    at: datetime
    experiment: str
    action: str
    arm: str | None
    actor: str
    reason: str | None
    details: Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """An experiment, and its latest statistics (``reading``; None before the first).

    ``history``, newest first, and ``readings``, oldest first, are set by ``get`` only, and are empty in lists.
    ``warnings`` say what keeps a running one from what its plan wants, and what may be wrong with the plan; the latter
    are set by ``start`` and ``get`` only.
    """

    name: str
    adapter: str
    status: str
    started_at: datetime
    started_by: str
    ended_at: datetime | None
    arms: tuple[ExperimentArm, ...]
    metric: ExperimentMetric
    guardrails: tuple[ExperimentGuardrail, ...]
    decision: ExperimentDecision
    ramp: ExperimentRamp | None
    unit: str = "user"
    window_seconds: float
    alpha: float
    reserve: float = 0.0
    unrated: str
    covariate: str = "none"
    ratings: str = "all"
    learned_days: float | None = None
    allocation: str
    epochs: tuple[ExperimentEpoch, ...]
    outcome: ExperimentOutcome | None
    reading: ExperimentReading | None
    warnings: tuple[str, ...] = ()
    history: tuple[ExperimentEvent, ...] = ()
    readings: tuple[ReadingPoint, ...] = ()

    @property
    def running(self) -> bool:
        """Whether the experiment has not ended."""
        return self.status == "running"

    @property
    def control(self) -> ExperimentArm:
        """The control arm."""
        return next(arm for arm in self.arms if arm.control)

    @property
    def treatments(self) -> tuple[ExperimentArm, ...]:
        """The arms that units are assigned to, except the control."""
        return tuple(arm for arm in self.arms if arm.shadow is None and not arm.control)
