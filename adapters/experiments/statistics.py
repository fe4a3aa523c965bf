"""The statistics of experiments, valid at every look: sequential tests and confidence sequences.

Everything here is *anytime-valid*: an error rate α holds for all looks together, whenever an experiment is looked at,
stopped or continued, and for whatever reason. The price is that it takes more observations than a test that may be read
only once.

================================  ====================================================  =============================
``MeanConfidenceSequence``        a confidence sequence for the mean of bounded values  Waudby-Smith & Ramdas 2024
``DifferenceSequence``            treatment − control, outcomes in [0, 1]               the same, inverse-probability
``OutcomePredictor``              what a unit's past says of its outcome                control variates, predictable
``AsymptoticConfidenceSequence``  treatment − control, outcomes without bounds          Waudby-Smith et al. 2024
``UpperBoundTest``                has a mean risen above its bound? For guardrails      one-sided betting
``ContrastTest``                  or above another's by more than a margin?             the same, on contrasts
``SampleRatioTest``               do the arms get the shares that were planned?         Lindon & Malek 2022
``thompson_shares``               weights that follow the better arm                    Thompson 1933
================================  ====================================================  =============================

- I. Waudby-Smith, A. Ramdas: Estimating means of bounded random variables by betting. JRSS B 86(1), 2024.
- I. Waudby-Smith, D. Arbour, R. Sinha, E. Kennedy, A. Ramdas: Time-uniform central limit theory and asymptotic
  confidence sequences. Annals of Statistics 52(6), 2024.
- A. Deng, Y. Xu, R. Kohavi, T. Walker: Improving the sensitivity of online controlled experiments by utilizing
  pre-experiment data. WSDM 2013.
- M. Lindon, A. Malek: Anytime-valid inference for multinomial count data. NeurIPS 2022.

An *e-process* is the wealth of a bettor against a hypothesis, who begins with 1: while the hypothesis is true it ever
reaches 1/α with probability at most α (Ville 1939). All are stored as logarithms. Objects carry their state from one
observation to the next, and store no observations.

Pure numpy, no I/O.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from types import EllipsisType

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

BET_FRACTIONS: Array = 0.9 * 0.5 ** np.arange(10.0)
"""The fraction of its wealth that each bettor stakes: (10,). The last ones are for differences that only hundreds of
thousands of observations show."""

_PRIOR: Array = np.array([9.0] * 6 + [3.0, 1.5, 1.0, 0.5]) / 60.0  # the initial wealth of each bettor

_CONCENTRATIONS: Array = np.array([10.0, 300.0, 10_000.0])  # for gross, middling and small mismatches

_PRIOR_UNITS = 20
"""A prediction counts as this many units against what the data say of a covariate, so that few do not mislead it."""

MIN_PER_ARM = 100
"""The fewest observations of each arm with which an asymptotic confidence sequence is finite."""


class CapitalProcess:
    """Wealth from betting that values are above 0: an e-process for "given the past, their mean is at most 0".

    Bettors stake a constant fraction f of their wealth: a gain g ≥ −1, in units of the largest possible loss,
    multiplies it by 1 + f·g. Their sum is the grid-Kelly bet of Waudby-Smith & Ramdas (2024): never far from the best
    fraction in hindsight, and with nothing to estimate or to tune.

    ``shape`` is that of independent processes side by side; ``()`` is a single one.
    """

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        column = (slice(None), *(None,) * len(shape))
        self._fractions = BET_FRACTIONS[column]
        self._logs = np.tile(np.log(_PRIOR)[column], (1, *shape))

    def bet(self, gains: ArrayLike, where: slice | EllipsisType = ...) -> None:
        """Bet once.

        Args:
            gains: In the shape of ``where``: values, each divided by the absolute lowest value it could have had. That
                bound must have been known before the value was.
            where: The processes that bet.
        """
        self._logs[:, where] += np.log1p(self._fractions * np.asarray(gains, dtype=float))

    def log(self, where: slice | EllipsisType = ...) -> Array:
        """The natural logarithm of the wealth, in the shape of ``where``."""
        logs = self._logs[:, where]
        top = logs.max(axis=0)
        summed: Array = top + np.log(np.exp(logs - top).sum(axis=0))
        return summed


class MeanConfidenceSequence:
    """A confidence sequence for the conditional mean of bounded values, each given the past.

    Every candidate mean on a grid is bet against from both sides; what is left between the rejected ones is the
    interval. With probability 1 − ``alpha`` the mean is never outside. Exact for any sample size. Assumes that the mean
    does not change and that values keep to the bounds given with them, and nothing else.

    Wealth falls as the candidate rises (rises, for the bets from above), so the rejected candidates are the first and
    the last ones of the grid, and only those between need further bets. The bounds are grid points themselves, that
    is, rounded outwards.

    Args:
        low: The mean is not below.
        high: The mean is not above.
        alpha: The error rate.
        num_points: Candidates on the grid.
        also: More candidates, whose rejection is then exact.

    Attributes:
        num: Values so far.
    """

    def __init__(
        self, low: float, high: float, *, alpha: float, num_points: int = 999, also: Iterable[float] = ()
    ) -> None:
        points = np.concatenate([np.linspace(low, high, num_points + 2), np.fromiter(also, dtype=float)])
        points = np.unique(np.round(points, 9))
        self._points: Array = points[(points > low) & (points < high)]
        self._threshold = math.log(2 / alpha)
        self._from_below = CapitalProcess(self._points.shape)
        self._from_above = CapitalProcess(self._points.shape)
        self._first, self._end = 0, len(self._points)  # the candidates that stand
        self._low, self._high = low, high
        self.num = 0
        self._sum = 0.0

    def add(self, value: float, *, least: float, most: float) -> None:
        """Add a value with its lowest and highest possible value, which were known before it was."""
        self.num += 1
        self._sum += value
        standing = slice(self._first, self._end)
        points = self._points[standing]
        self._from_below.bet((value - points) / (points - least), standing)
        self._from_above.bet((points - value) / (most - points), standing)
        self._first += int(np.count_nonzero(self._from_below.log(standing) >= self._threshold))
        standing = slice(self._first, self._end)
        self._end -= int(np.count_nonzero(self._from_above.log(standing) >= self._threshold))

    @property
    def mean(self) -> float:
        """The mean of the values so far, clipped to the interval; without any, 0 clipped to it."""
        return min(max(self._sum / max(self.num, 1), self.lower), self.upper)

    @property
    def lower(self) -> float:
        """The interval's lower end."""
        return float(self._points[self._first - 1]) if self._first else self._low

    @property
    def upper(self) -> float:
        """The interval's upper end."""
        return float(self._points[self._end]) if self._end < len(self._points) else self._high


def pseudo_outcome(
    outcome: ArrayLike,
    treated: ArrayLike,
    probability: ArrayLike,
    centre: ArrayLike,
    centres: tuple[ArrayLike, ArrayLike] | None = None,
) -> tuple[Array, Array, Array]:
    """The inverse-probability pseudo-outcome: an unbiased estimate of treatment − control from one outcome.

    It is (Y − c)·(1[treated]/π − 1[control]/(1 − π)). Given the past its mean is the difference of the two arms' means,
    whatever c and π are, as long as both were known before the arm was assigned; c near the outcomes' mean makes its
    variance small. Arrays broadcast.

    Args:
        outcome: Y in [0, 1].
        treated: True for the treatment's outcomes, false for the control's.
        probability: π, that the treatment was assigned and not the control; above 0 and below 1.
        centre: c in [0, 1].
        centres: The lowest and highest c that the unit could have had; ``None``: it was this one.

    Returns:
        (value, least, most): the pseudo-outcome, and its bounds for outcomes in [0, 1] and for these c.
    """
    y, pi, c = (np.asarray(given, dtype=float) for given in (outcome, probability, centre))
    low, high = (np.asarray(given, dtype=float) for given in centres or (c, c))
    value = (y - c) * np.where(treated, 1 / pi, -1 / (1 - pi))
    least = -np.maximum(high / pi, (1 - low) / (1 - pi))
    most = np.maximum((1 - low) / pi, high / (1 - pi))
    return value, least, most


class RunningMean:
    """The mean of outcomes in [0, 1] so far, with a prior observation of ½: outcomes are centred on it.

    Of any ``shape``.
    """

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        self._sum: Array = np.full(shape, 0.5)
        self._num = 1

    def value(self) -> Array:
        """The mean, ½ before any outcome."""
        return self._sum / self._num

    def add(self, outcome: ArrayLike) -> None:
        """Add an outcome, in the shape of the mean."""
        self._sum = self._sum + np.asarray(outcome, dtype=float)
        self._num += 1


class OutcomePredictor:
    """Predicts a unit's outcome from its covariate, such as its own mean before the experiment (CUPED's, Deng et al.
    2013), so that pseudo-outcomes are centred on what was to be expected of this very unit.

    The prediction is a line, fitted by least squares to earlier units of both arms, and shrunk towards no slope; for
    units without a covariate it is the mean. Only earlier units decide it, and the unit's covariate, which is older
    than its arm: so the pseudo-outcome's mean stays the difference of the arms. Bets must not depend on the covariate
    of the unit that they are made on, or units of which more is expected would have more weight: so predictions keep to
    a range that was known before the unit came, within two standard deviations of covariates.

    Of any ``shape``.

    Args:
        shape: That of independent predictors side by side.
        bounded: Whether outcomes lie in [0, 1]; predictions then do, and begin at ½.
    """

    def __init__(self, shape: tuple[int, ...] = (), *, bounded: bool = True) -> None:
        self._bounded = bounded
        zero: Array = np.zeros(shape)
        self._num, self._sum = (1, zero + 0.5) if bounded else (0, zero)
        # Of units with a covariate: their number, means, and sums of squares and of products of deviations.
        self._known, self._x, self._y, self._xx, self._xy = zero, zero, zero, zero, zero
        self._unexplained, self._total = zero, zero

    def predict(self, covariate: ArrayLike) -> tuple[Array, tuple[Array, Array]]:
        """The predicted outcome of the next unit, and the lowest and highest that it could have been.

        Args:
            covariate: Of the unit; NaN: it has none.
        """
        x = np.asarray(covariate, dtype=float)
        mean: Array = self._sum / max(self._num, 1)
        centre, slope, reach = self._line(mean)
        line = centre + np.clip(slope * (np.where(np.isnan(x), self._x, x) - self._x), -reach, reach)
        predicted, low, high = np.where(np.isnan(x), mean, line), centre - reach, centre + reach
        low, high = np.minimum(low, mean), np.maximum(high, mean)
        if self._bounded:
            predicted, low, high = (np.clip(value, 0.0, 1.0) for value in (predicted, low, high))
        return predicted, (low, high)

    def add(self, outcome: ArrayLike, covariate: ArrayLike) -> None:
        """Add a unit's outcome and covariate (NaN: none), after its prediction was used."""
        y, x = np.asarray(outcome, dtype=float), np.asarray(covariate, dtype=float)
        if self._num:
            self._total = self._total + (y - self._sum / self._num) ** 2
            self._unexplained = self._unexplained + (y - self.predict(x)[0]) ** 2
        self._num += 1
        self._sum = self._sum + y
        known = ~np.isnan(x)
        x = np.where(known, x, 0.0)
        self._known = self._known + known
        share = known / np.maximum(self._known, 1)
        before = x - self._x
        self._x = self._x + share * before
        self._y = self._y + share * (y - self._y)
        self._xx = self._xx + known * before * (x - self._x)
        self._xy = self._xy + known * before * (y - self._y)

    @property
    def explained(self) -> Array:
        """The share of the outcomes' variance that predictions took away so far, 0 to 1."""
        left = self._unexplained / np.where(self._total > 0, self._total, 1.0)
        explained: Array = np.where(self._total > 0, np.clip(1 - left, 0.0, 1.0), 0.0)
        return explained

    def _line(self, mean: Array) -> tuple[Array, Array, Array]:
        """Its middle and slope, and how far predictions may be from the middle."""
        trust = self._known / (self._known + _PRIOR_UNITS)
        centre = mean + trust * (self._y - mean)
        slope = trust * self._xy / np.where(self._xx > 0, self._xx, 1.0)
        return centre, slope, 2 * np.abs(slope) * np.sqrt(self._xx / np.maximum(self._known, 1))


class DifferenceSequence:
    """A confidence sequence for treatment − control, of outcomes in [0, 1].

    It is that of the centred inverse-probability pseudo-outcome (``pseudo_outcome``, ``MeanConfidenceSequence``), each
    centred on its prediction (``OutcomePredictor``). Exact at any time and for weights that depend on the past. Assumes
    that each unit's arm was assigned with the given probability, whatever came before and whatever its covariate, and
    that each unit occurs once; outcomes may drift as long as their difference does not.

    Args:
        alpha: The error rate.
        also: Differences whose rejection must be exact, beside 0.
    """

    def __init__(self, *, alpha: float, also: Iterable[float] = ()) -> None:
        self._sequence = MeanConfidenceSequence(-1.0, 1.0, alpha=alpha, also=(0.0, *also))
        self._predictor = OutcomePredictor()

    def add(self, outcome: float, *, treated: bool, probability: float, covariate: float | None = None) -> None:
        """Add a unit's outcome, arm and covariate; ``probability`` is that of the treatment."""
        known = math.nan if covariate is None else covariate
        value, least, most = pseudo_outcome(outcome, treated, probability, *self._predictor.predict(known))
        self._sequence.add(float(value), least=float(least), most=float(most))
        self._predictor.add(outcome, known)

    @property
    def explained(self) -> float:
        """The share of the outcomes' variance that covariates took away so far."""
        return float(self._predictor.explained)

    @property
    def num(self) -> int:
        """Units so far."""
        return self._sequence.num

    @property
    def mean(self) -> float:
        """The estimated difference."""
        return self._sequence.mean

    @property
    def lower(self) -> float:
        """The interval's lower end."""
        return self._sequence.lower

    @property
    def upper(self) -> float:
        """The interval's upper end."""
        return self._sequence.upper


def asymptotic_radius(num: ArrayLike, variance: ArrayLike, *, alpha: float, tightest_at: float = 1000.0) -> Array:
    """Half the width of an asymptotic confidence sequence.

    Waudby-Smith et al. (2024), Theorem 2.2: √(σ²·(n + r)/n²·log((n + r)/(r·α²))).

    Args:
        num: n, the number of values.
        variance: σ², their sample variance; any shape, broadcast with ``num``.
        alpha: The error rate.
        tightest_at: r is chosen so that the width is about minimal after this many values.
    """
    n = np.asarray(num, dtype=float)
    level = -2 * math.log(alpha)
    r = tightest_at / (level + math.log1p(level))
    radius: Array = np.sqrt(np.asarray(variance) * (n + r) / n**2 * np.log((n + r) / (r * alpha**2)))
    return radius


class AsymptoticConfidenceSequence:
    """An asymptotic confidence sequence for treatment − control, of outcomes without bounds.

    It is that of the same pseudo-outcome, centred on the same predictions, with ``asymptotic_radius``. Assumes finite
    variance and what ``DifferenceSequence`` does. Its error rate only tends to ``alpha``, the closer the later it is
    first read: so it is infinite before each arm has ``MIN_PER_ARM`` outcomes. Outcomes are best put on a scale without
    long tails: the logarithm of a latency.
    """

    def __init__(self, *, alpha: float) -> None:
        self._alpha = alpha
        self._per_arm = [0, 0]
        self._predictor = OutcomePredictor(bounded=False)
        self._mean = 0.0
        self._squares = 0.0  # of deviations from the mean

    def add(self, outcome: float, *, treated: bool, probability: float, covariate: float | None = None) -> None:
        """Add a unit's outcome, arm and covariate; ``probability`` is that of the treatment."""
        known = math.nan if covariate is None else covariate
        # The first outcome can only be centred on itself, which makes it no evidence: a value of 0.
        centre = float(self._predictor.predict(known)[0]) if self.num else outcome
        value = (outcome - centre) * (1 / probability if treated else -1 / (1 - probability))
        self._per_arm[treated] += 1
        self._predictor.add(outcome, known)
        before = value - self._mean
        self._mean += before / self.num
        self._squares += before * (value - self._mean)

    @property
    def num(self) -> int:
        """Units so far."""
        return sum(self._per_arm)

    @property
    def mean(self) -> float:
        """The estimated difference."""
        return self._mean

    @property
    def explained(self) -> float:
        """The share of the outcomes' variance that covariates took away so far."""
        return float(self._predictor.explained)

    @property
    def lower(self) -> float:
        """The interval's lower end, −∞ at first."""
        return self._mean - self._radius()

    @property
    def upper(self) -> float:
        """The interval's upper end, ∞ at first."""
        return self._mean + self._radius()

    def _radius(self) -> float:
        if min(self._per_arm) < MIN_PER_ARM:
            return math.inf
        return float(asymptotic_radius(self.num, self._squares / (self.num - 1), alpha=self._alpha))


class UpperBoundTest:
    """Has a mean risen above ``bound``? A one-sided e-process for guardrails, with an α of its own.

    Exact for values that keep to the bounds given with them; they may depend on each other in any way, and their means
    may change, as long as none, given the past, is above ``bound``.

    Half of the wealth is bet from the first value on, and the rest a little with every later one: so a change for the
    worse after thousands of good values need not first make up for these. (A mixture over starting times, as in the
    e-detectors of Shin, Ramdas & Rinaldo, NEJSDS 2(2), 2024, but within one α.)

    Attributes:
        num: Values so far.
        breached: Whether the evidence has ever reached 1/α.
    """

    def __init__(self, bound: float, *, alpha: float) -> None:
        self.bound = bound
        self._threshold = math.log(1 / alpha)
        self._logs: Array = np.log(_PRIOR) + math.log(0.5)
        self.num = 0
        self.breached = False

    def add(self, value: float, *, least: float) -> None:
        """Add a value with its lowest possible value, which is below the bound."""
        if self.num:
            released = math.log(_unspent_capital(self.num - 1) - _unspent_capital(self.num))
            self._logs = np.logaddexp(self._logs, np.log(_PRIOR) + released)
        self._logs = self._logs + np.log1p(BET_FRACTIONS * ((value - self.bound) / (self.bound - least)))
        self.num += 1
        self.breached = self.breached or self.log_e >= self._threshold

    @property
    def log_e(self) -> float:
        """The natural logarithm of the evidence."""
        reserve = math.log(_unspent_capital(max(self.num - 1, 0)))
        return float(np.logaddexp(np.logaddexp.reduce(self._logs), reserve))


def _unspent_capital(num: int) -> float:
    """The part of 1 that is not yet bet after ``num`` later starts.

    It falls to 0 so slowly that some is always left.
    """
    return 0.5 / math.log2(num + 2)


class ContrastTest:
    """Is the treatment's mean above the control's by more than ``margin``? For guardrails, request by request.

    For outcomes in [0, 1] of requests, which are not assigned independently since users come again. The means of both
    arms are compared in blocks, and a block ends as soon as it has outcomes of both. So whatever affects both arms at a
    time cancels out. Exact if within a block, given the past, the treatment's outcomes have means at most ``margin``
    above the control's.
    """

    def __init__(self, margin: float, *, alpha: float) -> None:
        self._test = UpperBoundTest(margin, alpha=alpha)
        self._begin()

    def add(self, outcome: float, *, treated: bool) -> None:
        """Add an outcome of one of the arms."""
        self._sums[treated] += outcome
        self._nums[treated] += 1
        if all(self._nums):
            control, treatment = (total / num for total, num in zip(self._sums, self._nums, strict=True))
            self._test.add(treatment - control, least=-1.0)
            self._begin()

    @property
    def num(self) -> int:
        """Blocks that were compared."""
        return self._test.num

    @property
    def breached(self) -> bool:
        """Whether the evidence has ever reached 1/α."""
        return self._test.breached

    @property
    def log_e(self) -> float:
        """The natural logarithm of the evidence."""
        return self._test.log_e

    def _begin(self) -> None:
        self._sums, self._nums = [0.0, 0.0], [0, 0]


class SampleRatioTest:
    """Do the arms get their planned shares? Lindon & Malek's sequential multinomial test.

    The evidence is the Bayes factor of a Dirichlet prior around the planned shares, here the mean over three such
    priors (narrow ones for small mismatches), multiplied over the epochs between which shares changed. Exact. A
    mismatch means that something other than chance decides which units are counted in which arm: then no other
    statistic can be trusted.

    Args:
        shares: The planned share of each arm, (..., num_arms), summing to 1; further axes are independent tests.
        alpha: The false alarm rate, over all looks.
    """

    _shares: Array
    _counts: Array
    _logs: Array

    def __init__(self, shares: ArrayLike, *, alpha: float) -> None:
        self._threshold = math.log(1 / alpha)
        self._before: Array = np.zeros(np.shape(shares)[:-1])
        self._begin(shares)

    def change(self, shares: ArrayLike) -> None:
        """Begin a new epoch with these shares."""
        self._before = self.log_e
        self._begin(shares)

    def add(self, arm: ArrayLike) -> None:
        """Add a unit in ``arm``, 0 to num_arms − 1 (one for each of the independent tests).

        One in an arm without a share makes the evidence infinite.
        """
        here = np.expand_dims(np.asarray(arm), -1)
        expected = np.take_along_axis(self._shares, here, -1)[..., 0]
        seen = np.take_along_axis(self._counts, here, -1)[..., 0]
        total = self._counts.sum(-1)
        posterior = (_CONCENTRATIONS * expected[..., None] + seen[..., None]) / (_CONCENTRATIONS + total[..., None])
        with np.errstate(divide="ignore", invalid="ignore"):
            factor = np.where(expected[..., None] > 0, posterior / expected[..., None], np.inf)
        self._logs = self._logs + np.log(factor)
        np.put_along_axis(self._counts, here, np.expand_dims(seen + 1, -1), -1)

    @property
    def log_e(self) -> Array:
        """The natural logarithm of the evidence, (...)."""
        top = self._logs.max(-1)
        finite = np.isfinite(top)
        inside = np.exp(np.where(finite[..., None], self._logs - np.where(finite, top, 0)[..., None], 0)).mean(-1)
        evidence: Array = self._before + top + np.log(inside)
        return evidence

    @property
    def mismatch(self) -> NDArray[np.bool_]:
        """Whether the evidence is at 1/α now.

        Later units may lower it, which does not undo the mismatch: remember it.
        """
        found: NDArray[np.bool_] = self.log_e >= self._threshold
        return found

    def _begin(self, shares: ArrayLike) -> None:
        self._shares = np.asarray(shares, dtype=float)
        self._counts = np.zeros(self._shares.shape)
        self._logs = np.zeros((*self._shares.shape[:-1], len(_CONCENTRATIONS)))


def thompson_shares(
    successes: Sequence[float], failures: Sequence[float], *, seed: int, floor: float, num_draws: int = 20_000
) -> list[float]:
    """Thompson sampling: each arm's weight is the probability that it is the best one, but at least ``floor``.

    With outcomes in [0, 1] and uniform priors, by Monte Carlo. Such weights serve users better meanwhile. Which arm is
    better must still be decided by ``DifferenceSequence``, which is valid under such weights too.

    Args:
        successes: Of each arm.
        failures: Of each arm.
        seed: Of the random numbers.
        floor: The least weight.
        num_draws: Of the posterior.
    """
    draws = np.random.default_rng(seed).beta(
        np.asarray(successes, dtype=float) + 1, np.asarray(failures, dtype=float) + 1, (num_draws, len(successes))
    )
    best = np.bincount(draws.argmax(axis=1), minlength=len(successes)) / num_draws
    shares = floor + (1 - floor * len(successes)) * best
    return [float(share) for share in shares]
