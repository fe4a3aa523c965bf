"""Units that differ and have a past: what comparing them with it saves, and how often it errs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.experiments.detections import ALPHA, Detections, FirstDetection, Floats, count, percent, saved
from graftwork.adapters.experiments.statistics import (
    MIN_PER_ARM,
    CapitalProcess,
    OutcomePredictor,
    asymptotic_radius,
    pseudo_outcome,
)


@dataclass(frozen=True, kw_only=True)
class Population:
    """Units that differ, and rated answers before the experiment, too: their past says something of their outcome.

    A unit likes an answer of the control with a probability of its own, from a beta distribution. Its outcome is the
    mean of 1 + Poisson(1) thumbs; its covariate the mean of 1 + Poisson(4) thumbs on the control, if it has a past.

    Attributes:
        spread: Standard deviation of that probability between units.
        improvement: By how much the treatment is liked more, in the mean.
        opposed: Whether the treatment instead halves the units' distance from the mean: those who liked little like it
            more, the others less, and there is no difference in the mean.
        share: Of the units that are assigned to the treatment.
        known: Share of the units with a past.
        mean: How often the control is liked.
    """

    spread: float
    improvement: float = 0.0
    opposed: bool = False
    share: float = 0.5
    known: float = 0.8
    mean: float = 0.7

    def draw(self, chance: np.random.Generator, treated: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        """Draw one unit for each run: its outcome and its covariate, NaN without a past; [runs] each."""
        concentration = self.mean * (1 - self.mean) / self.spread**2 - 1
        liked = chance.beta(self.mean * concentration, (1 - self.mean) * concentration, treated.shape)
        num_past = 1 + chance.poisson(4, treated.shape)
        past = np.where(
            chance.random(treated.shape) < self.known, chance.binomial(num_past, liked) / num_past, math.nan
        )
        changed = liked + self.improvement * (1 - liked) / (1 - self.mean)
        if self.opposed:
            changed = (liked + self.mean) / 2
        num_thumbs = 1 + chance.poisson(1, treated.shape)
        return chance.binomial(num_thumbs, np.where(treated, changed, liked)) / num_thumbs, past


def run_with_past(
    population: Population, *, num_runs: int, num_units: int, seed: int
) -> tuple[Detections, Detections, float]:
    """Simulate many runs of an experiment on units with a past.

    Returns:
        The detections of betting without and with covariates, and the share of variance that these explained.
    """
    chance = np.random.default_rng(seed)
    pi, threshold = population.share, math.log(2 / ALPHA)
    predictors = OutcomePredictor((num_runs,)), OutcomePredictor((num_runs,))
    processes = [(CapitalProcess((num_runs,)), CapitalProcess((num_runs,))) for _ in predictors]
    watches = FirstDetection(num_runs), FirstDetection(num_runs)
    for num in range(1, num_units + 1):
        treated = chance.random(num_runs) < pi
        outcome, past = population.draw(chance, treated)
        covariates = np.full(num_runs, math.nan), past
        for predictor, covariate, (rising, falling), watch in zip(
            predictors, covariates, processes, watches, strict=True
        ):
            value, least, most = pseudo_outcome(outcome, treated, pi, *predictor.predict(covariate))
            rising.bet(value / -least)
            falling.bet(-value / most)
            predictor.add(outcome, covariate)
            watch.update(num, rising.log() >= threshold, falling.log() >= threshold)
    without, adjusted = (watch.detections() for watch in watches)
    return without, adjusted, float(predictors[1].explained.mean())


def run_with_past_seconds(
    correlation: float, ratio: float, *, num_runs: int, num_units: int, seed: int
) -> tuple[Detections, Detections]:
    """Simulate many runs of an experiment on latencies, judged by the asymptotic confidence sequence.

    Logarithms of seconds are normal with a standard deviation of 0.6.

    Args:
        correlation: Between a unit's outcome and its covariate.
        ratio: The treatment's seconds as a part of the control's.
        num_runs: Number of runs.
        num_units: Units in each.
        seed: Of the simulation.

    Returns:
        The detections without and with covariates; the treatment wins if it is slower.
    """
    chance = np.random.default_rng(seed)
    predictors = [OutcomePredictor((num_runs,), bounded=False) for _ in range(2)]
    watches = FirstDetection(num_runs), FirstDetection(num_runs)
    totals, squares, counts = np.zeros((2, num_runs)), np.zeros((2, num_runs)), np.zeros((2, num_runs))
    for num in range(1, num_units + 1):
        treated = chance.random(num_runs) < 0.5
        past, noise = chance.normal(0, 0.6, (2, num_runs))
        outcome = correlation * past + math.sqrt(1 - correlation**2) * noise + math.log(ratio) * treated
        counts += np.stack([~treated, treated])
        readable = counts.min(axis=0) >= MIN_PER_ARM
        for place, covariate in enumerate((np.full(num_runs, math.nan), past)):
            centre = predictors[place].predict(covariate)[0] if num > 1 else outcome
            value = pseudo_outcome(outcome, treated, 0.5, centre)[0]
            predictors[place].add(outcome, covariate)
            totals[place] += value
            squares[place] += value**2
            mean = totals[place] / num
            variance = (squares[place] - totals[place] * mean) / max(num - 1, 1)
            radius = asymptotic_radius(num, variance, alpha=ALPHA)
            watches[place].update(num, readable & (mean > radius), readable & (mean < -radius))
    return watches[0].detections(), watches[1].detections()


def false_winners_with_past(num_runs: int, num_units: int) -> Iterable[str]:
    """Yield the table of false positives with covariates, for arms without a difference in the mean."""
    yield "| units differ by | weights | the past explains | without covariates | with covariates |"
    yield "| --- | --- | --- | --- | --- |"
    for spread, opposed in ((0.02, False), (0.2, False), (0.3, False), (0.3, True)):
        for share in (0.5, 0.1):
            population = Population(spread=spread, opposed=opposed, share=share)
            seed = round(1000 * spread + 10 * share + opposed)
            without, adjusted, explained = run_with_past(population, num_runs=num_runs, num_units=num_units, seed=seed)
            who = f"{spread:.2f}" + (", the treatment halves that" if opposed else "")
            weights = f"{100 * (1 - share):.0f}:{100 * share:.0f}"
            rates = f"{percent(without.declared)} | {percent(adjusted.declared)}"
            yield f"| {who} | {weights} | {percent(explained)} | {rates} |"


def power_with_past(num_runs: int, num_units: int) -> Iterable[str]:
    """Yield the table of detections with covariates."""
    yield "| units differ by | control → treatment | the past explains | without: right, median | with | saved |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for spread in (0.02, 0.2, 0.3):
        for improvement in (0.05, 0.1):
            population = Population(spread=spread, improvement=improvement)
            seed = round(1e5 * spread + 1000 * improvement)
            without, adjusted, explained = run_with_past(population, num_runs=num_runs, num_units=num_units, seed=seed)
            found = " | ".join(f"{percent(v.share_of(1))}, {count(v.median)}" for v in (without, adjusted))
            difference = f"{population.mean:.2f} → {population.mean + improvement:.2f}"
            yield f"| {spread:.2f} | {difference} | {percent(explained)} | {found} | {saved(adjusted, without)} |"


def seconds_with_past(num_runs: int, num_units: int) -> Iterable[str]:
    """Yield the table of latencies with covariates: false positives, and detections of 10 % more seconds."""
    yield "| correlation | no difference: without, with | 10 % slower: without, median | with, median | saved |"
    yield "| --- | --- | --- | --- | --- |"
    for correlation in (0.0, 0.5, 0.8):
        sizes = {"num_runs": num_runs, "num_units": num_units, "seed": round(100 * correlation)}
        equal = run_with_past_seconds(correlation, 1.0, **sizes)
        slower = run_with_past_seconds(correlation, 1.1, **sizes)
        errors = ", ".join(percent(found.declared) for found in equal)
        found = " | ".join(f"{percent(v.share_of(1))}, {count(v.median)}" for v in slower)
        yield f"| {correlation:g} | {errors} | {found} | {saved(slower[1], slower[0])} |"
