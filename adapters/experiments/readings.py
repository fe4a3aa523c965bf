"""The state of an experiment at one moment: records that are stored and served as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from graftwork.adapters.experiments.experiment import Json


@dataclass(frozen=True, kw_only=True)
class ArmReading:
    """One arm so far.

    Attributes:
        arm: Its name.
        weight: Its current share.
        requests: Requests that it answered.
        units: Closed units.
        judged: Those of them with a value of the primary metric.
        mean: Of the primary metric.
        lower: Of a confidence interval of the mean that holds at all times; None for a metric without bounds.
        upper: Of the same interval.
        means: Of all metrics, by label.
    """

    arm: str
    weight: float
    requests: int
    units: int
    judged: int
    mean: float | None
    lower: float | None
    upper: float | None
    means: dict[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A treatment compared with the control, by the primary metric. None: nothing is known yet.

    Attributes:
        arm: The treatment.
        units: Units of both arms.
        difference: In the metric's units; of ``latency`` as a part of the control's.
        lower: Of a confidence interval of the difference that holds at all times.
        upper: Of the same interval.
        improvement_lower: The same interval with the sign of an improvement.
        improvement_upper: As ``improvement_lower``.
        explained: The share of the outcomes' variance that the units' past explains; 0 without covariates.
    """

    arm: str
    units: int
    difference: float | None
    lower: float | None
    upper: float | None
    improvement_lower: float | None
    improvement_upper: float | None
    explained: float = 0.0


@dataclass(frozen=True, kw_only=True)
class GuardrailReading:
    """One guardrail for one treatment. It is breached once ``evidence`` has reached ``threshold``."""

    arm: str
    metric: str
    limit: float | None
    margin: float | None
    observations: int
    evidence: float
    threshold: float
    breached: bool


@dataclass(frozen=True, kw_only=True)
class SampleRatioReading:
    """Whether the arms got their shares of all units, and of the rated ones."""

    evidence: float
    evidence_rated: float | None
    threshold: float
    mismatch: bool


@dataclass(frozen=True, kw_only=True)
class ShadowReading:
    """A shadow arm compared with the answers that users got.

    Attributes:
        arm: Its name.
        sampled: Requests of which it should have got a copy.
        answered: Those that it answered.
        errors: Those that it failed at.
        pairs: Answers that could be compared.
        identical: The share of them that are equal.
        agreement: How similar they are, 0 to 1.
        length_ratio: Geometric mean of its answers' characters as a part of the users'.
        latency_ratio: The same of the latencies.
        preferred: How often its answer was preferred to another arm's.
        rejected: How often another arm's was preferred to it.
    """

    arm: str
    sampled: int
    answered: int
    errors: int
    pairs: int
    identical: float | None
    agreement: float | None
    length_ratio: float | None
    latency_ratio: float | None
    preferred: int
    rejected: int


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The state of an experiment.

    Attributes:
        units: Closed units.
        waiting: Units whose window has not ended.
        next_at: When the first of these counts, as Unix time in seconds; ``None`` if none waits.
        learned: Units that were left out so far, because a version was trained on them.
    """

    units: int
    waiting: int = 0
    next_at: float | None = None
    learned: int
    arms: tuple[ArmReading, ...]
    comparisons: tuple[Comparison, ...]
    guardrails: tuple[GuardrailReading, ...]
    sample_ratio: SampleRatioReading
    shadows: tuple[ShadowReading, ...]

    def to_json(self) -> Json:
        """The fields by name."""
        return asdict(self)
