"""Two arms whose units are alike: how often a winner is declared, how lost units are noticed, and guardrails."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from benchmarks.experiments.detections import ALPHA, Detections, FirstDetection, count, percent
from graftwork.adapters.experiments.statistics import (
    MIN_PER_ARM,
    CapitalProcess,
    ContrastTest,
    RunningMean,
    SampleRatioTest,
    UpperBoundTest,
    asymptotic_radius,
    pseudo_outcome,
)

GUARDRAIL_ALPHA = 0.01


METHODS = ("naive z", "asymptotic", "betting")


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A simulated experiment with two arms and binary outcomes.

    Attributes:
        control: success rate of the control.
        treatment: success rate of the treatment.
        share: share of the units that are assigned to the treatment.
        num_units: number of units.
    """

    control: float
    treatment: float
    share: float
    num_units: int

    @property
    def weights(self) -> str:
        """The weights of the arms in percent: ``90:10``."""
        return f"{100 * (1 - self.share):.0f}:{100 * self.share:.0f}"


def run(scenario: Scenario, *, num_runs: int, seed: int) -> tuple[dict[str, Detections], float]:
    """Simulate many runs of an experiment.

    Returns:
        The detections by method, and the share of runs in which the sample-ratio test raised an alarm.
    """
    chance = np.random.default_rng(seed)
    pi = scenario.share
    watches = {method: FirstDetection(num_runs) for method in METHODS}
    rising, falling, centre = CapitalProcess((num_runs,)), CapitalProcess((num_runs,)), RunningMean((num_runs,))
    ratio = SampleRatioTest(np.tile([1 - pi, pi], (num_runs, 1)), alpha=ALPHA)
    mismatch = np.zeros(num_runs, dtype=bool)
    counts, sums = np.zeros((2, num_runs)), np.zeros((2, num_runs))
    total = squares = outcomes = np.zeros(num_runs)
    threshold = math.log(2 / ALPHA)
    for num in range(1, scenario.num_units + 1):
        treated = chance.random(num_runs) < pi
        outcome = (chance.random(num_runs) < np.where(treated, scenario.treatment, scenario.control)).astype(float)

        value, least, most = pseudo_outcome(outcome, treated, pi, centre.value())
        rising.bet(value / -least)
        falling.bet(-value / most)
        centre.add(outcome)
        watches["betting"].update(num, rising.log() >= threshold, falling.log() >= threshold)

        value, _, _ = pseudo_outcome(outcome, treated, pi, outcomes / (num - 1) if num > 1 else outcome)
        outcomes = outcomes + outcome
        total, squares = total + value, squares + value**2
        counts += np.stack([~treated, treated])
        sums += np.stack([~treated, treated]) * outcome
        with np.errstate(divide="ignore", invalid="ignore"):
            variance = (squares - total**2 / num) / (num - 1)
            radius = asymptotic_radius(num, variance, alpha=ALPHA)
            readable = counts.min(axis=0) >= MIN_PER_ARM
            mean = total / num
            watches["asymptotic"].update(num, readable & (mean > radius), readable & (mean < -radius))

            rates, pooled = sums / counts, sums.sum(axis=0) / num
            z = (rates[1] - rates[0]) / np.sqrt(pooled * (1 - pooled) * (1 / counts).sum(axis=0))
            readable = counts.min(axis=0) >= 10
            watches["naive z"].update(num, readable & (z > 1.96), readable & (z < -1.96))

        ratio.add(treated.astype(int))
        mismatch |= ratio.mismatch
    return {method: watch.detections() for method, watch in watches.items()}, float(mismatch.mean())


def missingcount(lost: float, *, num_runs: int, num_units: int, seed: int) -> tuple[float, float]:
    """Simulate 50:50 experiments that lose a share of the treatment's units.

    Returns:
        The share of runs in which that is detected, and the median number of counted units until then.
    """
    chance = np.random.default_rng(seed)
    ratio, watch = SampleRatioTest(np.full((num_runs, 2), 0.5), alpha=ALPHA), FirstDetection(num_runs)
    treatment = (1 - lost) / (2 - lost)
    for num in range(1, num_units + 1):
        ratio.add((chance.random(num_runs) < treatment).astype(int))
        watch.update(num, ratio.mismatch, np.zeros(num_runs, dtype=bool))
    return watch.detections().declared, watch.detections().median


def guardrail(before: float, failing: float, *, relative: bool, num_runs: int, seed: int) -> tuple[float, float]:
    """Simulate a guardrail for an arm whose failure rate changes after 500 requests.

    Args:
        before: failure rate until then, and of the control at all times.
        failing: failure rate after that.
        relative: whether the guardrail allows 2 % more than the control, instead of 5 %.
        num_runs: number of runs.
        seed: of the simulation.

    Returns:
        The share of runs in which the guardrail was breached, and the median number of requests from the change to the
        breach.
    """
    chance = np.random.default_rng(seed)
    waited: list[float] = []
    for _ in range(num_runs):
        test = ContrastTest(0.02, alpha=GUARDRAIL_ALPHA) if relative else UpperBoundTest(0.05, alpha=GUARDRAIL_ALPHA)
        for num in range(500 + 2_000):
            failed = float(chance.random() < (before if num < 500 else failing))
            if isinstance(test, ContrastTest):
                test.add(float(chance.random() < before), treated=False)
                test.add(failed, treated=True)
            else:
                test.add(failed, least=0.0)
            if test.breached:
                waited.append(max(num - 499, 0))
                break
        else:
            waited.append(np.inf)
    return float(np.isfinite(waited).mean()), float(np.median(waited))


def false_winners(num_runs: int, num_units: int) -> Iterable[str]:
    """Yield the table of false positives, for arms without a difference."""
    yield "| both arms | weights | naive z | asymptotic | betting | sample ratio |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for rate in (0.05, 0.5, 0.95):
        for share in (0.5, 0.1):
            scenario = Scenario(control=rate, treatment=rate, share=share, num_units=num_units)
            verdicts, mismatch = run(scenario, num_runs=num_runs, seed=round(1000 * rate + 10 * share))
            errors = " | ".join(percent(verdicts[method].declared) for method in METHODS)
            yield f"| {rate:.2f} | {scenario.weights} | {errors} | {percent(mismatch)} |"


def power(num_runs: int, num_units: int) -> Iterable[str]:
    """Yield the table of detections, for arms with a difference."""
    yield "| control → treatment | weights | " + " | ".join(f"{method}: right, median" for method in METHODS) + " |"
    yield "| --- | --- | --- | --- | --- |"
    pairs = ((0.7, 0.8, 0.5), (0.7, 0.75, 0.5), (0.05, 0.1, 0.5), (0.96, 0.98, 0.5), (0.96, 0.98, 0.1), (0.8, 0.7, 0.1))
    for control, treatment, share in pairs:
        scenario = Scenario(control=control, treatment=treatment, share=share, num_units=num_units)
        verdicts, _ = run(scenario, num_runs=num_runs, seed=round(1e6 * control + 1000 * treatment + 10 * share))
        better = 1 if treatment > control else -1
        found = " | ".join(f"{percent(v.share_of(better))}, {count(v.median)}" for v in map(verdicts.get, METHODS) if v)
        yield f"| {control:.2f} → {treatment:.2f} | {scenario.weights} | {found} |"


def mismatches(num_runs: int, num_units: int) -> Iterable[str]:
    """Yield the table of the sample-ratio test, for experiments that lose units."""
    yield "| of the treatment's units are lost | noticed | median |"
    yield "| --- | --- | --- |"
    for lost in (0.02, 0.05, 0.1, 0.3):
        noticed, median = missingcount(lost, num_runs=num_runs, num_units=num_units, seed=round(100 * lost))
        yield f"| {lost:.0%} | {percent(noticed)} | {count(median)} |"


def guardrails(num_runs: int) -> Iterable[str]:
    """Yield the table of guardrails."""
    yield "| failing requests | at most 5 %: breached, median | 2 % above the control: breached, median |"
    yield "| --- | --- | --- |"
    for before, failing in ((0.01, 0.01), (0.05, 0.05), (0.01, 0.1), (0.01, 0.3), (0.01, 1.0)):
        cells = (
            guardrail(before, failing, relative=relative, num_runs=num_runs, seed=round(1000 * failing + 10 * relative))
            for relative in (False, True)
        )
        shown = " | ".join(f"{percent(breached)}, {count(median)}" for breached, median in cells)
        yield f"| {before:.0%} → {failing:.0%} | {shown} |"
