"""Simulated experiments: how often the statistics of ``adapters/experiments/statistics.py`` are wrong, and how long
they take.

    python -m benchmarks.experiments

prints the tables of docs/experiments.md as Markdown. Every figure is of many runs of the same code that judges real
experiments, read after every single observation; beside it stands what most people do, a z-test read as often.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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

ALPHA = 0.05
GUARDRAIL_ALPHA = 0.01
METHODS = ("naive z", "asymptotic", "betting")

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


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


@dataclass(frozen=True, kw_only=True)
class Detections:
    """The detections of many runs.

    Attributes:
        after: number of units until a winner was declared, 0 for none, [runs].
        winner: 1 for the treatment, -1 for the control, 0 for none, [runs].
    """

    after: Ints
    winner: Ints

    @property
    def declared(self) -> float:
        """Share of runs in which a winner was declared."""
        return float((self.after > 0).mean())

    def share_of(self, winner: int) -> float:
        """Return the share of runs with this winner."""
        return float((self.winner == winner).mean())

    @property
    def median(self) -> float:
        """Median number of units until a winner is declared; infinite if most runs declared none."""
        return float(np.median(np.where(self.after > 0, self.after, math.inf)))


class _FirstDetection:
    """Records when each run first declared a winner."""

    def __init__(self, num_runs: int) -> None:
        self._after = np.zeros(num_runs, dtype=np.int64)
        self._winner = np.zeros(num_runs, dtype=np.int64)

    def update(self, num: int, treatment_wins: NDArray[np.bool_], control_wins: NDArray[np.bool_]) -> None:
        new = (self._after == 0) & (treatment_wins | control_wins)
        self._after[new] = num
        self._winner[new] = np.where(treatment_wins[new], 1, -1)

    def detections(self) -> Detections:
        return Detections(after=self._after, winner=self._winner)


def run(scenario: Scenario, *, num_runs: int, seed: int) -> tuple[dict[str, Detections], float]:
    """Simulate many runs of an experiment.

    Returns:
        The detections by method, and the share of runs in which the sample-ratio test raised an alarm.
    """
    chance = np.random.default_rng(seed)
    pi = scenario.share
    watches = {method: _FirstDetection(num_runs) for method in METHODS}
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


def missing_units(lost: float, *, num_runs: int, num_units: int, seed: int) -> tuple[float, float]:
    """Simulate 50:50 experiments that lose a share of the treatment's units.

    Returns:
        The share of runs in which that is detected, and the median number of counted units until then.
    """
    chance = np.random.default_rng(seed)
    ratio, watch = SampleRatioTest(np.full((num_runs, 2), 0.5), alpha=ALPHA), _FirstDetection(num_runs)
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


# --- tables -----------------------------------------------------------------------------------------------------------


def false_winners(num_runs: int, num_units: int) -> Iterable[str]:
    """Yield the table of false positives, for arms without a difference."""
    yield "| both arms | weights | naive z | asymptotic | betting | sample ratio |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for rate in (0.05, 0.5, 0.95):
        for share in (0.5, 0.1):
            scenario = Scenario(control=rate, treatment=rate, share=share, num_units=num_units)
            verdicts, mismatch = run(scenario, num_runs=num_runs, seed=round(1000 * rate + 10 * share))
            errors = " | ".join(_percent(verdicts[method].declared) for method in METHODS)
            yield f"| {rate:.2f} | {scenario.weights} | {errors} | {_percent(mismatch)} |"


def power(num_runs: int, num_units: int) -> Iterable[str]:
    """Yield the table of detections, for arms with a difference."""
    yield "| control → treatment | weights | " + " | ".join(f"{method}: right, median" for method in METHODS) + " |"
    yield "| --- | --- | --- | --- | --- |"
    pairs = ((0.7, 0.8, 0.5), (0.7, 0.75, 0.5), (0.05, 0.1, 0.5), (0.96, 0.98, 0.5), (0.96, 0.98, 0.1), (0.8, 0.7, 0.1))
    for control, treatment, share in pairs:
        scenario = Scenario(control=control, treatment=treatment, share=share, num_units=num_units)
        verdicts, _ = run(scenario, num_runs=num_runs, seed=round(1e6 * control + 1000 * treatment + 10 * share))
        better = 1 if treatment > control else -1
        found = " | ".join(
            f"{_percent(v.share_of(better))}, {_units(v.median)}" for v in map(verdicts.get, METHODS) if v
        )
        yield f"| {control:.2f} → {treatment:.2f} | {scenario.weights} | {found} |"


def mismatches(num_runs: int, num_units: int) -> Iterable[str]:
    """Yield the table of the sample-ratio test, for experiments that lose units."""
    yield "| of the treatment's units are lost | noticed | median |"
    yield "| --- | --- | --- |"
    for lost in (0.02, 0.05, 0.1, 0.3):
        noticed, median = missing_units(lost, num_runs=num_runs, num_units=num_units, seed=round(100 * lost))
        yield f"| {lost:.0%} | {_percent(noticed)} | {_units(median)} |"


def guardrails(num_runs: int) -> Iterable[str]:
    """Yield the table of guardrails."""
    yield "| failing requests | at most 5 %: breached, median | 2 % above the control: breached, median |"
    yield "| --- | --- | --- |"
    for before, failing in ((0.01, 0.01), (0.05, 0.05), (0.01, 0.1), (0.01, 0.3), (0.01, 1.0)):
        cells = (
            guardrail(before, failing, relative=relative, num_runs=num_runs, seed=round(1000 * failing + 10 * relative))
            for relative in (False, True)
        )
        shown = " | ".join(f"{_percent(breached)}, {_units(median)}" for breached, median in cells)
        yield f"| {before:.0%} → {failing:.0%} | {shown} |"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _units(num: float) -> str:
    return f"{num:,.0f}" if math.isfinite(num) else "–"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print all tables as Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.experiments", description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=2000, help="experiments per line of a table (default: 2000)")
    parser.add_argument("--units", type=int, default=10_000, help="units in each at most (default: 10000)")
    given = parser.parse_args(arguments)
    tables: list[tuple[str, Callable[[], Iterable[str]]]] = [
        ("False winners", lambda: false_winners(given.runs, given.units)),
        ("Power and median number of units", lambda: power(given.runs, given.units)),
        ("Units that get lost", lambda: mismatches(given.runs, given.units)),
        ("Guardrails", lambda: guardrails(max(given.runs // 4, 1))),
    ]
    began = time.monotonic()
    for title, lines in tables:
        print(f"### {title}\n")
        for line in lines():
            print(line, flush=True)
        print()
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
