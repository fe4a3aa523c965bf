"""The statistics of one experiment, updated with each request and each closed unit; gives a ``Reading`` at any time.

Deterministic: the same units give the same reading. Every unit counts once, with the probability of its assignment.
Requests, of which a user may have many, count only for guardrails on metrics that a single request decides.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from graftwork.adapters.experiments.experiment import Experiment
from graftwork.adapters.experiments.exposures import ClosedUnit, Exposure
from graftwork.adapters.experiments.metrics import STANDARD_METRICS, Metric, request_value
from graftwork.adapters.experiments.plan import Arm, Guardrail
from graftwork.adapters.experiments.readings import (
    ArmReading,
    Comparison,
    GuardrailReading,
    Reading,
    SampleRatioReading,
    ShadowReading,
)
from graftwork.adapters.experiments.statistics import (
    AsymptoticConfidenceSequence,
    ContrastTest,
    DifferenceSequence,
    MeanConfidenceSequence,
    RunningMean,
    SampleRatioTest,
    UpperBoundTest,
    pseudo_outcome,
)

SAMPLE_RATIO_ALPHA: Final = 0.01
"""The false alarm rate of the sample ratio test, over all looks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShadowPair:
    """A shadow arm's answer compared with the one that the user got.

    Attributes:
        agreement: How similar the texts are, 0 to 1.
        identical: Whether they are equal.
        log_length: Natural logarithm of the ratio of their lengths in characters, shadow to user's.
        log_latency: The same of their latencies.
    """

    agreement: float
    identical: bool
    log_length: float
    log_latency: float


class ExperimentAnalysis:
    """All statistics of one experiment, updated incrementally."""

    def __init__(self, experiment: Experiment) -> None:
        plan = experiment.plan
        self._plan = plan
        self._arms = (plan.control, *plan.treatments)
        self._weights: dict[int, dict[str, float]] = {}
        self.update_epochs(experiment)
        self._num_requests: Counter[str] = Counter()
        self._num_units: Counter[str] = Counter()
        self._in_epoch: Counter[tuple[int, str]] = Counter()
        self._learned = 0
        self._left_out: set[str] = set()
        self._means = {arm.name: _Means() for arm in self._arms}
        self._tallies = {arm.name: _PrimaryMetric(plan.metric, plan.alpha) for arm in self._arms}
        # Bonferroni: each of several treatments gets its part of alpha, so that alpha holds for all of them together.
        self._contrasts = {
            arm.name: _Contrast(plan.metric, plan.alpha_of(arm), (plan.rule.promote_above, plan.rule.stop_below))
            for arm in plan.treatments
        }
        begun = {epoch.number: epoch.at for epoch in experiment.epochs}
        self._guardrails = [
            _RequestGuardrail(rail, arm, plan.control, since=begun[arm.joined or 1])
            if rail.metric.is_per_request
            else _UnitGuardrail(rail, arm)
            for arm in plan.treatments
            for rail in plan.guardrails
        ]
        self._ratios: dict[int, SampleRatioTest] = {}
        self._rated_ratios: dict[int, SampleRatioTest] = {}
        self._mismatch = False
        self._shadows = {arm.name: _Shadow(arm) for arm in plan.shadows}

    def update_epochs(self, experiment: Experiment) -> None:
        """Add epochs that began since."""
        for epoch in experiment.epochs:
            self._weights[epoch.number] = epoch.split.weights

    def add_request(self, exposure: Exposure) -> None:
        """Add a request; call it in the order in which they were logged."""
        self._num_requests[exposure.arm] += 1
        for rail in self._guardrails:
            if isinstance(rail, _RequestGuardrail):
                rail.add(exposure)

    def add_shadow_counts(self, arm: str, *, sampled: int = 0, answered: int = 0, errors: int = 0) -> None:
        """Add to the counts of a shadow arm: requests it should have answered, has answered, and failed at."""
        shadow = self._shadows[arm]
        shadow.sampled += sampled
        shadow.answered += answered
        shadow.errors += errors

    def add_shadow_pair(self, arm: str, pair: ShadowPair) -> None:
        """Add a comparison of a shadow arm's answer."""
        self._shadows[arm].pairs.add(pair)

    def add_preference(self, better: str, worse: str) -> None:
        """Count that an answer of ``better`` was preferred to one of ``worse``, where one of them is a shadow arm."""
        if better in self._shadows:
            self._shadows[better].preferred += 1
        if worse in self._shadows:
            self._shadows[worse].rejected += 1

    def add_unit(self, unit: ClosedUnit) -> None:
        """Add a closed unit; call it in the order of their numbers."""
        plan, arm, weights = self._plan, unit.arm, self._weights[unit.epoch]
        self._left_out.discard(unit.unit)
        self._num_units[arm] += 1
        self._in_epoch[unit.epoch, arm] += 1
        self._count(self._ratios, unit)
        if unit.learned:
            self._learned += 1
            return
        self._means[arm].add(unit.outcome)
        for rail in self._guardrails:
            if isinstance(rail, _UnitGuardrail):
                value = unit.outcome.get(rail.metric.label)
                probability = _probability(weights, rail.arm, plan.control.name)
                if value is not None:
                    rail.add(arm, value, probability)
        value = unit.outcome.get(plan.metric.label)
        if value is not None and plan.metric.rated:
            # Where the unrated count, too, it is fair that they are more in one arm.
            self._count(self._rated_ratios, unit, alarming=plan.unrated == "leave_out")
        # Who was never asked has not kept silent.
        unasked = plan.ratings == "asked" and unit.outcome.get("feedback_rate") is None
        if value is None and not unasked and plan.unrated == "neutral" and plan.metric.bounds is not None:
            value = sum(plan.metric.bounds) / 2
        if value is None:
            return
        self._tallies[arm].add(value)
        for name, contrast in self._contrasts.items():
            probability = _probability(weights, name, plan.control.name)
            if arm in (name, plan.control.name) and probability is not None:
                contrast.add(value, treated=arm == name, probability=probability, covariate=unit.covariate)

    def leave_out(self, unit: str) -> None:
        """Count a unit as left out, because a version was trained on it, until it is added."""
        self._left_out.add(unit)

    def units_in_epoch(self, epoch: int, arm: str) -> int:
        """The number of closed units that were assigned to an arm in an epoch."""
        return self._in_epoch[epoch, arm]

    def successes_and_failures(self) -> dict[str, tuple[float, float]]:
        """Successes and failures of each arm, in units, for Thompson sampling; 0 for a metric without bounds."""
        return {name: tally.successes_and_failures() for name, tally in self._tallies.items()}

    @property
    def num_units(self) -> int:
        """Closed units of all arms."""
        return sum(self._num_units.values())

    def reading(self, weights: dict[str, float]) -> Reading:
        """The state of the experiment; ``weights`` are the current ones."""
        return Reading(
            units=self.num_units,
            learned=self._learned + len(self._left_out),
            arms=tuple(
                ArmReading(
                    arm=arm.name,
                    weight=weights.get(arm.name, 0.0),
                    requests=self._num_requests[arm.name],
                    units=self._num_units[arm.name],
                    means=self._means[arm.name].means(),
                    **self._tallies[arm.name].reading(),
                )
                for arm in self._arms
            ),
            comparisons=tuple(contrast.reading(name) for name, contrast in self._contrasts.items()),
            guardrails=tuple(rail.reading() for rail in self._guardrails),
            sample_ratio=self._ratio_reading(),
            shadows=tuple(shadow.reading() for shadow in self._shadows.values()),
        )

    def _count(self, ratios: dict[int, SampleRatioTest], unit: ClosedUnit, *, alarming: bool = True) -> None:
        """Count a unit in a test of the shares. A mismatch that makes no comparison unfair is not ``alarming``."""
        weights = self._weights[unit.epoch]
        # One test per epoch. Their evidence multiplies, in whatever order units of neighbouring epochs close.
        if unit.epoch not in ratios:
            shares = [weights.get(arm.name, 0.0) for arm in self._arms]
            ratios[unit.epoch] = SampleRatioTest(shares, alpha=SAMPLE_RATIO_ALPHA)
        ratios[unit.epoch].add([arm.name for arm in self._arms].index(unit.arm))
        if alarming:
            self._mismatch = self._mismatch or _log_e(ratios.values()) >= -math.log(SAMPLE_RATIO_ALPHA)

    def _ratio_reading(self) -> SampleRatioReading:
        return SampleRatioReading(
            evidence=_evidence(_log_e(self._ratios.values())),
            evidence_rated=_evidence(_log_e(self._rated_ratios.values())) if self._plan.metric.rated else None,
            threshold=1 / SAMPLE_RATIO_ALPHA,
            mismatch=self._mismatch,
        )


def _probability(weights: dict[str, float], treatment: str, control: str) -> float | None:
    """The probability that a unit of one of these two arms is assigned the treatment; ``None`` if not random."""
    treated, untreated = weights.get(treatment, 0.0), weights.get(control, 0.0)
    return treated / (treated + untreated) if treated > 0 and untreated > 0 else None


def _log_e(ratios: Iterable[SampleRatioTest]) -> float:
    return sum(float(ratio.log_e) for ratio in ratios)


def _evidence(log_e: float) -> float:
    """The evidence as a finite number, for people and JSON."""
    return float(f"{math.exp(min(log_e, 700)):.4g}")


class _Means:
    """The mean of every metric over an arm's units."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, int]] = {metric.label: (0.0, 0) for metric in STANDARD_METRICS}

    def add(self, outcome: Mapping[str, float | None]) -> None:
        for label, value in outcome.items():
            total, num = self._sums.get(label, (0.0, 0))
            if value is not None:
                total, num = total + value, num + 1
            self._sums[label] = total, num

    def means(self) -> dict[str, float | None]:
        means = {label: total / num if num else None for label, (total, num) in self._sums.items()}
        return {label: _shown(label, mean) for label, mean in means.items()}


def _shown(label: str, mean: float | None) -> float | None:
    """A mean as it is shown: that of ``latency`` is computed from logarithms and shown in seconds."""
    return math.exp(mean) if mean is not None and label == "latency" else mean


class _PrimaryMetric:
    """The primary metric of one arm."""

    def __init__(self, metric: Metric, alpha: float) -> None:
        self._metric = metric
        self._sequence = MeanConfidenceSequence(0.0, 1.0, alpha=alpha, num_points=499) if metric.bounds else None
        self._num, self._sum = 0, 0.0

    def add(self, value: float) -> None:
        self._num += 1
        self._sum += value
        if self._sequence is not None:
            self._sequence.add(self._metric.scaled(value), least=0.0, most=1.0)

    def successes_and_failures(self) -> tuple[float, float]:
        if self._sequence is None:
            return 0.0, 0.0
        high = self._sequence.mean * self._num
        return (high, self._num - high) if self._metric.goal == "up" else (self._num - high, high)

    def reading(self) -> Any:
        mean = _shown(self._metric.label, self._sum / self._num) if self._num else None
        lower = upper = None
        if self._sequence is not None and self._metric.bounds is not None and self._num:
            low, high = self._metric.bounds
            lower, upper = (low + (high - low) * end for end in (self._sequence.lower, self._sequence.upper))
        return {"judged": self._num, "mean": mean, "lower": lower, "upper": upper}


class _Contrast:
    """The primary metric of one treatment compared with the control."""

    def __init__(self, metric: Metric, alpha: float, margins: tuple[float | None, ...]) -> None:
        self._metric = metric
        self._sequence: DifferenceSequence | AsymptoticConfidenceSequence
        if metric.bounds is None:
            self._sequence = AsymptoticConfidenceSequence(alpha=alpha)
        else:
            reach = metric.bounds[1] - metric.bounds[0]
            also = [sign * margin / reach for margin in margins if margin is not None for sign in (1, -1)]
            self._sequence = DifferenceSequence(alpha=alpha, also=also)

    def add(self, value: float, *, treated: bool, probability: float, covariate: float | None) -> None:
        if self._metric.bounds is not None:
            value = self._metric.scaled(value)
            covariate = None if covariate is None else self._metric.scaled(covariate)
        self._sequence.add(value, treated=treated, probability=probability, covariate=covariate)

    def reading(self, arm: str) -> Comparison:
        found = self._sequence
        explained = round(found.explained, 4)
        if not found.num or not math.isfinite(found.lower):
            return Comparison(arm=arm, units=found.num, explained=explained, **dict.fromkeys(_DIFFERENCE))
        middle, lower, upper = (self._in_units(value) for value in (found.mean, found.lower, found.upper))
        better = (lower, upper) if self._metric.goal == "up" else (-upper, -lower)
        return Comparison(
            arm=arm,
            units=found.num,
            difference=middle,
            lower=lower,
            upper=upper,
            improvement_lower=better[0],
            improvement_upper=better[1],
            explained=explained,
        )

    def _in_units(self, difference: float) -> float:
        if self._metric.bounds is not None:
            return round(difference * (self._metric.bounds[1] - self._metric.bounds[0]), 9)
        return math.expm1(difference) if self._metric.name == "latency" else difference


_DIFFERENCE = ("difference", "lower", "upper", "improvement_lower", "improvement_upper")


class _UnitGuardrail:
    """A guardrail of one treatment on a metric that only a closed unit has."""

    def __init__(self, rail: Guardrail, arm: Arm) -> None:
        self.rail, self.metric, self.arm = rail, rail.metric, arm.name
        self._running_mean = RunningMean()
        self._test = UpperBoundTest(_bound(rail), alpha=rail.alpha)

    def add(self, arm: str, value: float, probability: float | None) -> None:
        bad = _badness(self.metric, value)
        if self.rail.limit is not None:
            if arm == self.arm:
                self._test.add(bad, least=0.0)
        elif probability is not None:
            pseudo, least, _ = pseudo_outcome(bad, arm == self.arm, probability, self._running_mean.value())
            self._test.add(float(pseudo), least=float(least))
            self._running_mean.add(bad)

    def reading(self) -> GuardrailReading:
        return _rail_reading(self.rail, self.arm, self._test)


class _RequestGuardrail:
    """A guardrail of one treatment on a metric that every request has, ``since`` the treatment was there."""

    def __init__(self, rail: Guardrail, arm: Arm, control: Arm, *, since: datetime) -> None:
        self.rail, self.metric, self.arm, self._control = rail, rail.metric, arm.name, control.name
        self._since = since.replace(microsecond=0)  # times of requests are whole seconds
        self._test: ContrastTest | UpperBoundTest
        if rail.limit is None:
            self._test = ContrastTest(_bound(rail), alpha=rail.alpha)
        else:
            self._test = UpperBoundTest(_bound(rail), alpha=rail.alpha)

    def add(self, exposure: Exposure) -> None:
        if exposure.arm not in (self.arm, self._control) or exposure.created_at < self._since:
            return
        value = request_value(self.metric, exposure)
        if value is None:
            return
        bad = _badness(self.metric, value)
        if isinstance(self._test, ContrastTest):
            self._test.add(bad, treated=exposure.arm == self.arm)
        elif exposure.arm == self.arm:
            self._test.add(bad, least=0.0)

    def reading(self) -> GuardrailReading:
        return _rail_reading(self.rail, self.arm, self._test)


def _badness(metric: Metric, value: float) -> float:
    """The value scaled so that 0 is best and 1 is worst."""
    scaled = metric.scaled(value)
    return scaled if metric.goal == "down" else 1 - scaled


def _bound(rail: Guardrail) -> float:
    low, high = rail.metric.bounds or (0.0, 1.0)
    return _badness(rail.metric, rail.limit) if rail.limit is not None else (rail.margin or 0.0) / (high - low)


def _rail_reading(rail: Guardrail, arm: str, test: UpperBoundTest | ContrastTest) -> GuardrailReading:
    return GuardrailReading(
        arm=arm,
        metric=rail.metric.label,
        limit=rail.limit,
        margin=rail.margin,
        observations=test.num,
        evidence=_evidence(test.log_e),
        threshold=float(f"{1 / rail.alpha:.6g}"),
        breached=test.breached,
    )


class _Shadow:
    """The counts and comparisons of a shadow arm."""

    def __init__(self, arm: Arm) -> None:
        self._arm = arm.name
        self.sampled = self.answered = self.errors = self.preferred = self.rejected = 0
        self.pairs = _Pairs()

    def reading(self) -> ShadowReading:
        agreement, identical, length, latency = self.pairs.means()
        return ShadowReading(
            arm=self._arm,
            sampled=self.sampled,
            answered=self.answered,
            errors=self.errors,
            pairs=self.pairs.num,
            identical=identical,
            agreement=agreement,
            length_ratio=None if length is None else math.exp(length),
            latency_ratio=None if latency is None else math.exp(latency),
            preferred=self.preferred,
            rejected=self.rejected,
        )


class _Pairs:
    """Means over comparisons."""

    def __init__(self) -> None:
        self.num = 0
        self._sums = (0.0, 0.0, 0.0, 0.0)

    def add(self, pair: ShadowPair) -> None:
        self.num += 1
        values = (pair.agreement, float(pair.identical), pair.log_length, pair.log_latency)
        agreement, identical, length, latency = (total + value for total, value in zip(self._sums, values, strict=True))
        self._sums = (agreement, identical, length, latency)

    def means(self) -> list[float | None]:
        return [total / self.num if self.num else None for total in self._sums]
