"""What the server says of experiments, as frozen dataclasses: field names as on the wire, times in UTC.

Fields whose set of values may grow (``status``, ``decision``, ``action``) are plain strings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentMetric:
    """What is measured. ``label`` is what readings call it, ``goal`` whether more (up) or less (down) is better."""

    name: str
    label: str
    goal: str
    over: float | None = None
    range: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentArm:
    """One way to answer: a version (``adapter`` is its id, or the base's), and what it does differently.

    ``weight`` is its share of the units now; a shadow arm has none, and copies of the ``shadow`` share of requests.
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


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentGuardrail:
    """What no treatment may do: be worse than ``limit``, or worse than the control by more than ``margin``."""

    metric: ExperimentMetric
    limit: float | None = None
    margin: float | None = None
    alpha: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentDecision:
    """When an experiment is decided; ``automatic``: and acted upon."""

    promote_above: float | None
    stop_below: float | None
    max_units: int | None
    until: datetime | None
    automatic: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentRamp:
    """The treatment's weights, one after the other."""

    weights: tuple[float, ...]
    min_units: int
    min_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentEpoch:
    """From ``at`` on the arms had these weights."""

    number: int
    at: datetime
    weights: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmReading:
    """One arm so far. ``mean``, ``lower`` and ``upper`` are of the primary metric, over the ``judged`` units."""

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
    """A treatment's difference to the control, with an interval that holds at all times; ``None``: nothing is known."""

    arm: str
    units: int
    difference: float | None
    lower: float | None
    upper: float | None
    improvement_lower: float | None = None
    improvement_upper: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardrailReading:
    """One guardrail for one treatment: breached once ``evidence`` has reached ``threshold``."""

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
    """Whether the arms get the shares that they were promised: of units, and of those that were rated."""

    evidence: float
    evidence_rated: float | None
    threshold: float
    mismatch: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class ShadowReading:
    """A shadow arm's copies, and its answers beside those that users got."""

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
    """How an experiment stands. ``learned`` are units left out because a version had learned from them."""

    at: datetime | None = None
    units: int
    learned: int
    arms: tuple[ArmReading, ...]
    comparisons: tuple[ArmComparison, ...]
    guardrails: tuple[GuardrailReading, ...]
    sample_ratio: SampleRatio
    shadows: tuple[ShadowReading, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadingPoint:
    """How it stood at a time: a point of the picture."""

    at: datetime
    units: int
    arms: tuple[ArmReading, ...]
    comparisons: tuple[ArmComparison, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentOutcome:
    """How it ended. ``decision``: promoted, harm, guardrail, undecided or stopped."""

    decision: str
    arm: str | None
    reason: str
    actor: str
    reading: ExperimentReading | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentEvent:
    """One line of its history. ``action``: start, weights, rollback, advice, alarm or stop."""

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
    """An experiment, and how it stands (``reading``; ``None`` before the first).

    ``history``, newest first, and ``readings``, oldest first, are there where one experiment was asked for.
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
    window_seconds: float
    alpha: float
    unrated: str
    allocation: str
    epochs: tuple[ExperimentEpoch, ...]
    outcome: ExperimentOutcome | None
    reading: ExperimentReading | None
    history: tuple[ExperimentEvent, ...] = ()
    readings: tuple[ReadingPoint, ...] = ()

    @property
    def running(self) -> bool:
        return self.status == "running"

    @property
    def control(self) -> ExperimentArm:
        return next(arm for arm in self.arms if arm.control)

    @property
    def treatments(self) -> tuple[ExperimentArm, ...]:
        """Arms that are drawn, without the control."""
        return tuple(arm for arm in self.arms if arm.shadow is None and not arm.control)
