"""How an experiment stands at one moment: the records that are stored and served as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from graftwork.adapters.experiments.experiment import Json


@dataclass(frozen=True, kw_only=True)
class ArmReading:
    """One arm so far.

    Attributes:
        requests: that it answered. units: closed ones; judged: those with a value of the primary metric.
        mean: of the primary metric, with an interval that holds at all times; None where there is none.
        means: of all metrics.
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
    """A treatment beside the control: the difference of the primary metric and its interval, in the metric's units
    (of latency: as a part of the control's). ``improvement_…`` is the same, for the better; None: nothing is known."""

    arm: str
    units: int
    difference: float | None
    lower: float | None
    upper: float | None
    improvement_lower: float | None
    improvement_upper: float | None


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
    """Whether the arms got their shares: of the units, and of those that were rated."""

    evidence: float
    evidence_rated: float | None
    threshold: float
    mismatch: bool


@dataclass(frozen=True, kw_only=True)
class ShadowReading:
    """A shadow arm beside the answers that users got.

    Attributes:
        sampled: requests it should have had a copy of. answered: those it answered; errors: those it failed.
        pairs: answers that could be compared; identical: the share of them that are the same to the letter;
            agreement: how alike they are, 0 to 1.
        length_ratio, latency_ratio: its answers' characters and seconds as a part of the users', geometric means.
        preferred, rejected: how often its answer was preferred to, or rejected for, another one.
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
    """How an experiment stands. ``learned``: units left out, because a version had learned from them."""

    units: int
    learned: int
    arms: tuple[ArmReading, ...]
    comparisons: tuple[Comparison, ...]
    guardrails: tuple[GuardrailReading, ...]
    sample_ratio: SampleRatioReading
    shadows: tuple[ShadowReading, ...]

    def to_json(self) -> Json:
        return asdict(self)
