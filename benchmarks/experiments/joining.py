"""Several treatments, some of which join later: how often an equal arm is declared a winner."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from benchmarks.experiments.detections import ALPHA, Floats, count, percent
from graftwork.adapters.experiments.metrics import Metric
from graftwork.adapters.experiments.plan import Arm, ExperimentPlan
from graftwork.adapters.experiments.statistics import CapitalProcess, pseudo_outcome


def joining_arms(
    treatments: int, joining: int, *, improvement: float = 0.0, num_runs: int, num_units: int, seed: int
) -> tuple[float, float, float]:
    """Simulate experiments on arms of which some join later, with outcomes that are 0 or 1 and 0.7 in the mean.

    Args:
        treatments: Treatments at the start, as good as the control.
        joining: Arms that join, one after each 1,000 units. All arms have the same weight at all times.
        improvement: Of the first one that joins.
        num_runs: Number of runs.
        num_units: Units in each.
        seed: Of the simulation.

    Returns:
        The share of runs in which an equal arm was declared a winner; the same if each was compared at the whole
        level; and the median number of units from the joining of the first arm until it was declared better.
    """
    chance = np.random.default_rng(seed)
    names = [Arm(name=str(place), version=place) for place in range(1 + treatments)]
    late = [Arm(name=f"joined {place}", version=place, joined=2 + place) for place in range(joining)]
    plan = ExperimentPlan(adapter="a", arms=(*names, *late), metric=Metric.of("thumb"), alpha=ALPHA)
    contrasts = [
        (CapitalProcess((num_runs,)), CapitalProcess((num_runs,)), _RunningMeans(num_runs)) for _ in plan.treatments
    ]
    shared, whole = (np.zeros((len(contrasts), num_runs), dtype=bool) for _ in range(2))
    found_after = np.full(num_runs, math.inf)
    for num in range(num_units):
        present = 1 + treatments + min(num // 1000, joining)
        arm = chance.integers(present, size=num_runs)
        liked = 0.7 + improvement * (arm == 1 + treatments)
        outcome = (chance.random(num_runs) < liked).astype(float)
        for place in range(present - 1):
            rising, falling, centre = contrasts[place]
            here = (arm == 0) | (arm == 1 + place)
            value, least, most = pseudo_outcome(outcome, arm > 0, 0.5, centre.value())
            rising.bet(np.where(here, value / -least, 0.0))
            falling.bet(np.where(here, -value / most, 0.0))
            centre.add(outcome, here)
            evidence = np.maximum(rising.log(), falling.log())
            shared[place] |= evidence >= math.log(2 / plan.alpha_of(plan.treatments[place]))
            whole[place] |= evidence >= math.log(2 / ALPHA)
            if place == treatments:
                found_after = np.where(shared[place] & np.isinf(found_after), num - 1000, found_after)
    equal = [place for place in range(len(contrasts)) if not improvement or place != treatments]
    return (
        float(shared[equal].any(axis=0).mean()),
        float(whole[equal].any(axis=0).mean()),
        float(np.median(found_after)),
    )


class _RunningMeans:
    """``RunningMean`` side by side, of which each gets some of the outcomes only."""

    def __init__(self, num_runs: int) -> None:
        self._sums, self._nums = np.full(num_runs, 0.5), np.ones(num_runs)

    def value(self) -> Floats:
        """The means so far."""
        return self._sums / self._nums

    def add(self, outcome: Floats, where: NDArray[np.bool_]) -> None:
        """Add outcomes to those of ``where``."""
        self._sums, self._nums = self._sums + outcome * where, self._nums + where


def arms_that_join(num_runs: int, num_units: int) -> Iterable[str]:
    """Yield the table of arms that join a running experiment."""
    yield "| treatments at the start | join later | error shared | each at 5 % | first to join, 0.10 better: units |"
    yield "| --- | --- | --- | --- | --- |"
    for treatments, joining in ((1, 0), (3, 0), (1, 1), (1, 3), (3, 3)):
        sizes = {"num_runs": num_runs, "num_units": num_units, "seed": 10 * treatments + joining}
        shared, whole, _ = joining_arms(treatments, joining, **sizes)
        median = joining_arms(treatments, joining, improvement=0.1, **sizes)[2] if joining else math.inf
        yield f"| {treatments} | {joining} | {percent(shared)} | {percent(whole)} | {count(median)} |"
