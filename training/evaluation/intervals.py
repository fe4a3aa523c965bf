"""Intervals for the difference between two models on the same rows, right at any number of rows.

Both kinds invert the sign-flip test: if one model is as good as the other, each row's difference might as well have had
the opposite sign. No normal distribution and no bootstrap is involved; with few rows the interval is wide instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtrc
from scipy.stats import binomtest

LEVEL: Final = 0.05
"""Probability with which the true value lies below an interval, and the same for above."""

MAX_ENUMERATED: Final = 12
"""Maximum number of rows of which all sign flips, or all subsets, are enumerated."""

NUM_DRAWN: Final = 4095
"""Number of sign flips, or subsets, that are drawn with more rows; as many as `MAX_ENUMERATED` rows have."""

_TOLERANCE: Final = 1e-9

Floats = NDArray[numpy.float64]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value with its confidence limits, each of which is wrong with a probability of at most `LEVEL`.

    A limit is infinite if there are too few rows for one.
    """

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


def paired_interval(new: Sequence[float], old: Sequence[float], *, seed: int = 0) -> Interval:
    """Return the mean of ``new - old`` over the same rows, with its limits, for a metric of 0 to 1.

    Whether the mean may be ``-k / num_rows`` is tested by giving the new model ``k`` additional rows, each won by a
    whole point. That is McNemar's exact test if rows are right or wrong, and there the limits are whole numbers of
    rows. It holds where most differences are zero, too: identical answers on 20 rows do not show that no row gets
    worse, those on 300 rows show that at most 2 % do.

    Args:
        new: the metric of each row for one model.
        old: the metric of each row for the other model.
        seed: of the sign flips that are drawn.
    """
    differences = numpy.asarray(new, dtype=float) - numpy.asarray(old, dtype=float)
    return Interval(
        mean=float(differences.sum() / len(differences)),
        low=_lower_limit(differences, seed),
        high=-_lower_limit(-differences, seed),
    )


def ratio_interval(numerators: Sequence[float], denominators: Sequence[float], *, seed: int = 0) -> Interval:
    """Return the ratio of two sums over rows, with its limits. With denominators of 1 it is the mean.

    The limits are quantiles of the ratio over random subsets of the rows (Hartigan's typical values, 1969). They assume
    that a row deviates upwards as easily as downwards, and no bounds; 5 rows have finite limits.

    Args:
        numerators: one for each row.
        denominators: one for each row, at least 0.
        seed: of the subsets that are drawn.
    """
    over, under = numpy.asarray(numerators, dtype=float), numpy.asarray(denominators, dtype=float)
    subsets = _signs(len(over), seed) > 0
    totals = subsets @ under
    ratios = numpy.sort((subsets @ over)[totals > 0] / totals[totals > 0])
    beyond = math.floor(LEVEL * (len(ratios) + 1)) - 1
    return Interval(
        mean=float(over.sum() / under.sum()),
        low=float(ratios[beyond]) if beyond >= 0 else -math.inf,
        high=float(ratios[-1 - beyond]) if beyond >= 0 else math.inf,
    )


def share_interval(num_right: int, num_rows: int) -> Interval:
    """Return a share with its exact limits (Clopper and Pearson, 1934)."""
    limits = binomtest(num_right, num_rows).proportion_ci(1 - 2 * LEVEL)
    return Interval(mean=num_right / num_rows, low=float(limits.low), high=float(limits.high))


def sign_test(wins: ArrayLike, losses: ArrayLike) -> Floats:
    """Return the one-sided p-values of McNemar's exact test: how likely as many wins are if wins and losses are equally
    likely. Inputs are broadcast."""
    wins, losses = numpy.asarray(wins, dtype=numpy.int64), numpy.asarray(losses, dtype=numpy.int64)
    return numpy.asarray(bdtrc(wins - 1.0, wins + losses, 0.5))


def _lower_limit(differences: Floats, seed: int) -> float:
    """The largest number of which it can be said that the mean is greater, in whole rows; -1 if there is none."""
    changed = differences[differences != 0]
    right_or_wrong = bool((numpy.abs(changed) == 1).all())
    flipped = None if right_or_wrong else _signs(len(changed), seed) @ changed
    total, wins = changed.sum(), int((changed > 0).sum())

    def p_value(handicap: int) -> float:
        given, taken = max(handicap, 0), max(-handicap, 0)
        if flipped is None:
            return float(sign_test(wins + given, len(changed) - wins + taken))
        # The additional rows are flipped exactly: of their fair coins so many must show heads.
        heads = numpy.ceil((total + handicap - flipped + abs(handicap)) / 2 - _TOLERANCE)
        return float(bdtrc(numpy.clip(heads, 0, abs(handicap) + 1) - 1, abs(handicap), 0.5).mean())

    # P-values fall with the handicap: the smallest one that is significant is found by bisection.
    low, high = -len(differences), len(differences)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if p_value(middle) <= LEVEL else (middle + 1, high)
    return -high / len(differences)


def _signs(num_rows: int, seed: int) -> NDArray[numpy.int8]:
    """Return sign flips of rows, 1 or -1, [flips, num_rows], the first of which flips no row."""
    if num_rows <= MAX_ENUMERATED:
        bits = numpy.arange(2**num_rows)[:, None] >> numpy.arange(num_rows) & 1
    else:
        bits = numpy.random.default_rng(seed).integers(0, 2, (NUM_DRAWN + 1, num_rows), dtype=numpy.int8)
        bits[0] = 0
    return (1 - 2 * bits).astype(numpy.int8)
