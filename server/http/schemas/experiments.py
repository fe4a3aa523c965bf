"""Experiments, their parts and their readings (``adapters.experiments.readings``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired

from pydantic import GetPydanticSchema
from typing_extensions import TypedDict

from graftwork.adapters.experiments.readings import Reading


class ExperimentMetricObject(TypedDict):
    """What is measured. ``goal``: whether more (up) or less (down) is better; ``label``: what readings call it."""

    name: str
    over: float | None
    range: Sequence[float] | None
    goal: str
    label: str


class ExperimentArmObject(TypedDict):
    """A version and what it does differently. A shadow arm has no weight, but copies of a share of the requests."""

    name: str
    version: int | None
    adapter: str
    alias: str | None
    control: bool
    weight: float | None
    shadow: float | None
    system: str | None
    sampling: Mapping[str, Any]
    joined: int | None
    alpha: float | None


class ExperimentGuardrailObject(TypedDict):
    """No treatment may be worse than ``limit``, or worse than the control by more than ``margin``."""

    metric: ExperimentMetricObject
    limit: float | None
    margin: float | None
    alpha: float


class ExperimentDecisionObject(TypedDict):
    """When an experiment is decided; ``automatic``: and acted upon."""

    promote_above: float | None
    stop_below: float | None
    max_units: int | None
    until: float | None
    automatic: bool


class ExperimentRampObject(TypedDict):
    """The treatment's weights, one after the other."""

    weights: Sequence[float]
    min_units: int
    min_seconds: float


class ExperimentEpochObject(TypedDict):
    """From ``at`` on the arms had these weights."""

    number: int
    at: float
    weights: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class TimedReading(Reading):
    """The state of an experiment at the time ``at``, Unix time in seconds."""

    at: float


class ReadingPointArm(TypedDict):
    """One arm's mean and its interval."""

    arm: str
    judged: int
    mean: float | None
    lower: float | None
    upper: float | None


class ReadingPointComparison(TypedDict):
    """A treatment's difference to the control and its interval."""

    arm: str
    units: int
    difference: float | None
    lower: float | None
    upper: float | None


class ReadingPointObject(TypedDict):
    """The part of a reading that a chart over time shows."""

    at: float
    units: int
    arms: list[ReadingPointArm]
    comparisons: list[ReadingPointComparison]


class ExperimentOutcomeObject(TypedDict):
    """How it ended: promoted, harm, guardrail, undecided or stopped."""

    decision: str
    arm: str | None
    reason: str
    actor: str
    reading: Annotated[Mapping[str, Any], GetPydanticSchema(lambda _, handler: handler(Reading))] | None


class ExperimentEventObject(TypedDict):
    """One line of its history: start, weights, rollback, advice, alarm or stop."""

    object: Literal["experiment.event"]
    id: int
    at: float
    experiment: str
    action: str
    arm: str | None
    actor: str
    reason: str | None
    details: Mapping[str, Any] | None


class ExperimentObject(TypedDict):
    """An experiment. ``history``, newest first, and ``readings``, oldest first, come with a single experiment only.

    ``warnings`` say what keeps it from what its plan wants, while it runs.
    """

    object: Literal["experiment"]
    name: str
    adapter: str
    status: Literal["running", "ended"]
    started_at: float
    started_by: str
    ended_at: float | None
    arms: list[ExperimentArmObject]
    metric: ExperimentMetricObject
    guardrails: list[ExperimentGuardrailObject]
    decision: ExperimentDecisionObject
    ramp: ExperimentRampObject | None
    unit: str
    window_seconds: float
    alpha: float
    reserve: float
    unrated: str
    covariate: str
    ratings: str
    learned_days: float
    allocation: str
    epochs: list[ExperimentEpochObject]
    outcome: ExperimentOutcomeObject | None
    reading: Annotated[Mapping[str, Any], GetPydanticSchema(lambda _, handler: handler(TimedReading))] | None
    warnings: list[str]
    history: NotRequired[list[ExperimentEventObject]]
    readings: NotRequired[list[ReadingPointObject]]
