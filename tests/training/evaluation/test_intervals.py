"""Intervals of paired differences: right at any number of rows, which is shown by enumeration where possible."""

from __future__ import annotations

import math

import numpy
import pytest
from scipy.stats import binomtest, multinomial

from graftwork.training.evaluation.intervals import LEVEL, Interval, paired_interval, ratio_interval, sign_test


def right_and_wrong(wins: int, losses: int, ties: int) -> Interval:
    return paired_interval([1.0] * wins + [0.0] * losses + [1.0] * ties, [0.0] * wins + [1.0] * losses + [1.0] * ties)


@pytest.mark.parametrize(
    ("wins", "losses", "ties", "low", "high"),
    [
        (4, 0, 8, -1, 12),  # all four answers that changed are right now: p = 1/16 is no proof
        (5, 0, 7, 0, 12),  # p = 1/32
        (0, 0, 12, -5, 5),  # twelve equal answers do not say that no answer gets worse
        (0, 0, 250, -5, 5),
        (0, 8, 0, -8, -1),
    ],
)
def test_limits_are_whole_numbers_of_rows(wins: int, losses: int, ties: int, low: int, high: int) -> None:
    count = wins + losses + ties
    interval = right_and_wrong(wins, losses, ties)
    assert (interval.low, interval.high) == (low / count, high / count)
    assert interval.mean == (wins - losses) / count


def test_it_is_mcnemars_exact_test() -> None:
    for wins, losses in ((4, 0), (9, 2), (0, 0), (30, 18)):
        expected = binomtest(wins, wins + losses, alternative="greater").pvalue if wins + losses else 1.0
        assert sign_test(wins, losses) == pytest.approx(expected)
        assert (right_and_wrong(wins, losses, 60).low >= 0) == (expected <= LEVEL)


@pytest.mark.parametrize("count", [12, 20])
def test_a_limit_is_wrong_as_seldom_as_it_says(count: int) -> None:
    """Over all outcomes of so many rows, weighted by their probabilities."""
    outcomes = [(wins, losses) for wins in range(count + 1) for losses in range(count + 1 - wins)]
    found = [right_and_wrong(wins, losses, count - wins - losses) for wins, losses in outcomes]
    low, high = (numpy.array([getattr(interval, side) for interval in found]) for side in ("low", "high"))
    shares = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
    for won in shares:
        for lost in shares:
            chance = multinomial.pmf(
                [(*each, count - sum(each)) for each in outcomes], count, [won, lost, 1 - won - lost]
            )
            assert chance[low > won - lost + 1e-9].sum() <= LEVEL
            assert chance[high < won - lost - 1e-9].sum() <= LEVEL


def test_scores_between_right_and_wrong_are_compared_by_the_same_test() -> None:
    random = numpy.random.default_rng(0)
    whole = random.integers(-1, 2, 30)
    exact = paired_interval((whole == 1).astype(float).tolist(), (whole == -1).astype(float).tolist())
    # One row that is not quite right or wrong takes the way of scores.
    nearly = paired_interval([*(whole == 1).astype(float), 0.501], [*(whole == -1).astype(float), 0.5])
    assert (nearly.low, nearly.high) == pytest.approx((exact.low, exact.high), abs=2 / 30)


def test_scores_that_are_mostly_equal_and_now_and_then_far_worse() -> None:
    """The distribution that a bootstrap, a t-test or a shift of all rows is wrong for: what is rare was not seen."""
    random = numpy.random.default_rng(1)
    missed = 0
    for seed in range(400):
        lost = (random.random(40) < 0.05) * random.uniform(0.6, 1.0, 40)
        missed += paired_interval((1 - lost).tolist(), [1.0] * 40, seed=seed).low > -0.04
    assert missed <= 0.05 * 400


def test_ratios_of_sums_hold_as_often_as_they_say() -> None:
    random = numpy.random.default_rng(2)
    for count in (6, 10, 40):
        below = above = 0
        for seed in range(400):
            lengths = random.uniform(20, 80, count)
            interval = ratio_interval((0.03 + random.normal(0, 0.02, count)) * lengths, lengths, seed=seed)
            below, above = below + (interval.low > 0.03), above + (interval.high < 0.03)
        assert max(below, above) <= 0.05 * 400 + 13  # three standard deviations of the count
        assert below + above > 10, "and not much less often either"


def test_too_few_rows_have_no_limits() -> None:
    interval = ratio_interval([0.1] * 4, [1.0] * 4)
    assert (interval.mean, interval.low, interval.high) == (pytest.approx(0.1), -math.inf, math.inf)
    same = ratio_interval([0.0] * 10, [3.0] * 10)
    assert (same.low, same.high) == (0.0, 0.0)
    assert (right_and_wrong(1, 0, 0).low, right_and_wrong(1, 0, 0).high) == (-1.0, 1.0)
