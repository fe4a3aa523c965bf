"""The statistics compared with slow reference implementations, with ``ville``, and with simulations."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import numpy as np
import pytest
import ville
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.experiments import two_arms as simulated
from benchmarks.experiments.__main__ import main
from benchmarks.experiments.covariates import Population, run_with_past
from benchmarks.experiments.joining import joining_arms
from graftwork.adapters.experiments import statistics
from graftwork.adapters.experiments.statistics import (
    AsymptoticConfidenceSequence,
    CapitalProcess,
    ContrastTest,
    DifferenceSequence,
    MeanConfidenceSequence,
    OutcomePredictor,
    SampleRatioTest,
    UpperBoundTest,
    pseudo_outcome,
)
from tests.conftest import CHECKOUT

ALPHA = 0.05


def units(
    num: int, *, control: float, treatment: float, share: float, seed: int = 0
) -> Iterator[tuple[float, bool, float]]:
    """(outcome, treated, probability), outcome 0 or 1."""
    chance = np.random.default_rng(seed)
    for _ in range(num):
        treated = bool(chance.random() < share)
        yield float(chance.random() < (treatment if treated else control)), treated, share


# --- betting ----------------------------------------------------------------------------------------------------------


def slow_wealth(gains: list[float]) -> float:
    """Each bettor by itself, in plain numbers."""
    wealth = 0.0
    for fraction, begins_with in zip(statistics.BET_FRACTIONS, np.exp(CapitalProcess()._logs), strict=True):
        for gain in gains:
            begins_with *= 1 + fraction * gain
        wealth += begins_with
    return float(wealth)


def test_capital_is_the_sum_of_its_bettors() -> None:
    gains = np.random.default_rng(1).uniform(-1, 2, (40, 3))
    capital = CapitalProcess((3,))
    assert np.exp(capital.log()) == pytest.approx(1)
    for row in gains:
        capital.bet(row)
    assert np.exp(capital.log()) == pytest.approx([slow_wealth(list(column)) for column in gains.T])


def test_nobody_can_lose_more_than_everything() -> None:
    capital = CapitalProcess()
    for _ in range(1000):
        capital.bet(-1.0)
    assert np.isfinite(capital.log())
    assert capital.log() < math.log(0.02)


@pytest.mark.parametrize("treated", [True, False])
@pytest.mark.parametrize("probability", [0.5, 0.1, 0.99])
@pytest.mark.parametrize("centre", [0.0, 0.3, 1.0])
def test_pseudo_outcomes_keep_to_their_bounds(treated: bool, probability: float, centre: float) -> None:
    values = [pseudo_outcome(outcome, treated, probability, centre) for outcome in (0.0, 0.5, 1.0)]
    assert all(least - 1e-9 <= value <= most + 1e-9 for value, least, most in values)


@pytest.mark.parametrize("probability", [0.5, 0.1])
@pytest.mark.parametrize("centre", [0.0, 0.9])
def test_pseudo_outcomes_have_the_difference_as_their_mean(probability: float, centre: float) -> None:
    treatment, control = 0.8, 0.3
    mean = sum(
        (probability if treated else 1 - probability)
        * (rate if outcome else 1 - rate)
        * pseudo_outcome(outcome, treated, probability, centre)[0]
        for treated, rate in ((True, treatment), (False, control))
        for outcome in (0.0, 1.0)
    )
    assert mean == pytest.approx(treatment - control)


def slow_interval(values: list[tuple[float, float, float]], points: list[float], alpha: float) -> tuple[float, float]:
    """Every candidate bet against with everything, to the end, from both sides; none left out for being refuted."""
    lower, upper = -1.0, 1.0
    for length in range(1, len(values) + 1):
        for point in points:
            rising = [(value - point) / (point - least) for value, least, _ in values[:length]]
            falling = [(point - value) / (most - point) for value, _, most in values[:length]]
            if slow_wealth(rising) >= 2 / alpha:
                lower = max(lower, point)
            if slow_wealth(falling) >= 2 / alpha:
                upper = min(upper, point)
    return lower, upper


def test_the_difference_is_what_the_slow_way_says() -> None:
    difference, sums, values = DifferenceSequence(alpha=0.2), 0.5, []
    difference._sequence = MeanConfidenceSequence(-1, 1, alpha=0.2, num_points=19)
    for num, (outcome, treated, share) in enumerate(units(60, control=0.2, treatment=0.9, share=0.4), 1):
        difference.add(outcome, treated=treated, probability=share)
        values.append(tuple(map(float, pseudo_outcome(outcome, treated, share, sums / num))))
        sums += outcome
    points = [round(-1 + step / 10, 9) for step in range(1, 20)]
    assert (difference.lower, difference.upper) == pytest.approx(slow_interval(values, points, 0.2))
    assert difference.lower > 0  # or nothing was compared


def test_the_difference_bets_at_zero_as_the_simulation_does() -> None:
    """The simulation's figures are those of the real thing: it declares a winner at the very same unit."""
    num_units, seed, after = 1500, 7, 0
    difference = DifferenceSequence(alpha=simulated.ALPHA)
    chance = np.random.default_rng(seed)
    for num in range(1, num_units + 1):
        treated = chance.random(1)[0] < 0.5
        outcome = float(chance.random(1)[0] < (0.8 if treated else 0.65))
        difference.add(outcome, treated=bool(treated), probability=0.5)
        if not after and (difference.lower >= 0 or difference.upper <= 0):
            after = num
    scenario = simulated.Scenario(control=0.65, treatment=0.8, share=0.5, num_units=num_units)
    verdicts, _ = simulated.run(scenario, num_runs=1, seed=seed)
    assert verdicts["betting"].after.tolist() == [after]
    assert after


@settings(max_examples=50)
@given(
    units=st.lists(
        st.tuples(st.floats(0, 1), st.one_of(st.none(), st.floats(0, 1)), st.booleans(), st.sampled_from([0.01, 0.5])),
        max_size=40,
    )
)
def test_predictions_keep_to_what_was_known_before_the_unit(
    units: list[tuple[float, float | None, bool, float]],
) -> None:
    """Or bets could lose more than there is: for every covariate the pseudo-outcome is within its bounds."""
    predictor = OutcomePredictor()
    for outcome, covariate, treated, probability in units:
        bounds = set()
        for x in (math.nan, 0.0, 0.3, 1.0, math.nan if covariate is None else covariate):
            predicted, (low, high) = predictor.predict(x)
            assert 0 <= low <= predicted <= high <= 1
            value, least, most = pseudo_outcome(outcome, treated, probability, predicted, (low, high))
            assert least - 1e-9 <= value <= most + 1e-9
            bounds.add((float(least), float(most)))
        assert len(bounds) == 1, "the unit's own covariate must not decide how much is staked on it"
        predictor.add(outcome, math.nan if covariate is None else covariate)


def test_predictions_are_the_shrunken_line_of_least_squares() -> None:
    chance = np.random.default_rng(5)
    x = chance.random(300)
    y = np.clip(0.2 + 0.5 * x + chance.normal(0, 0.1, 300), 0, 1)
    predictor = OutcomePredictor()
    for outcome, covariate in zip(y, x, strict=True):
        predictor.add(outcome, covariate)
    for _ in range(20):
        predictor.add(0.9, math.nan)
    trust = 300 / 320
    mean = (y.sum() + 0.5 + 18) / 321
    middle = mean + trust * (y.mean() - mean)
    slope = trust * np.polyfit(x, y, 1)[0]
    for covariate in (0.3, 0.6):
        assert predictor.predict(covariate)[0] == pytest.approx(middle + slope * (covariate - x.mean()))
    reach = 2 * slope * x.std()
    assert predictor.predict(5.0)[0] == pytest.approx(middle + reach)
    assert predictor.predict(math.nan)[0] == pytest.approx(mean)
    assert 0.3 < predictor.explained < 1


def test_with_covariates_the_difference_bets_as_the_simulation_does() -> None:
    population, num_units, seed, after = Population(spread=0.3, improvement=0.15), 600, 11, 0
    difference = DifferenceSequence(alpha=simulated.ALPHA)
    chance = np.random.default_rng(seed)
    for num in range(1, num_units + 1):
        treated = chance.random(1) < 0.5
        (outcome,), (past,) = population.draw(chance, treated)
        covariate = None if math.isnan(past) else float(past)
        difference.add(float(outcome), treated=bool(treated[0]), probability=0.5, covariate=covariate)
        if not after and (difference.lower >= 0 or difference.upper <= 0):
            after = num
    _, adjusted, _ = run_with_past(population, num_runs=1, num_units=num_units, seed=seed)
    assert adjusted.after.tolist() == [after]
    assert after


@pytest.mark.parametrize("opposed", [False, True])
def test_covariates_name_no_false_winners(opposed: bool) -> None:
    """Neither where the arms are alike, nor where the treatment suits some as much as it does not suit others."""
    population = Population(spread=0.3, opposed=opposed)
    _, adjusted, explained = run_with_past(population, num_runs=300, num_units=600, seed=4)
    assert adjusted.declared <= 0.05
    assert explained > 0.1


def test_covariates_save_units() -> None:
    population = Population(spread=0.3, improvement=0.08)
    plain, adjusted, _ = run_with_past(population, num_runs=60, num_units=2000, seed=5)
    assert adjusted.median < 0.9 * plain.median
    assert adjusted.share_of(-1) == 0


def test_arms_that_join_share_the_error() -> None:
    shared, whole, median = joining_arms(1, 2, num_runs=100, num_units=3000, seed=6)
    assert shared <= 0.05
    assert whole >= shared
    assert math.isinf(median)


@settings(max_examples=25)
@given(
    outcomes=st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.sampled_from([0.01, 0.1, 0.5])), max_size=60),
    margin=st.floats(-0.9, 0.9),
)
def test_intervals_are_ordered_and_only_ever_shrink(outcomes: list[tuple[float, bool, float]], margin: float) -> None:
    difference = DifferenceSequence(alpha=ALPHA, also=[margin])
    lower, upper = -1.0, 1.0
    for outcome, treated, probability in outcomes:
        difference.add(outcome, treated=treated, probability=probability)
        assert lower <= difference.lower < difference.upper <= upper
        assert difference.lower <= difference.mean <= difference.upper
        lower, upper = difference.lower, difference.upper


def test_weights_may_change_as_the_past_says() -> None:
    """A canary whose weight follows its outcomes: of 200 such A/A tests few ever exclude no difference."""
    wrong = 0
    for seed in range(200):
        chance = np.random.default_rng(seed)
        rising, falling, centre = CapitalProcess(), CapitalProcess(), statistics.RunningMean()
        share, gained = 0.1, 0.0
        for num in range(400):
            treated = bool(chance.random() < share)
            outcome = float(chance.random() < 0.7)
            value, least, most = pseudo_outcome(outcome, treated, share, centre.value())
            rising.bet(value / -least)
            falling.bet(-value / most)
            centre.add(outcome)
            gained += (outcome - 0.7) * (1 if treated else -1)
            if num % 20 == 19:
                share = 0.5 if gained > 0 else 0.05
            if max(rising.log(), falling.log()) >= math.log(2 / ALPHA):
                wrong += 1
                break
    assert wrong <= 0.05 * 200 + 3


def test_a_margin_is_decided_on_exactly() -> None:
    difference = DifferenceSequence(alpha=ALPHA, also=[0.0333])
    for outcome, treated, share in units(3000, control=0.5, treatment=0.7, share=0.5):
        difference.add(outcome, treated=treated, probability=share)
        if difference.lower >= 0.0333:
            return
    pytest.fail("a difference of 0.2 was never found to be above the margin")


def test_a_mean_is_enclosed() -> None:
    chance = np.random.default_rng(3)
    sequence = MeanConfidenceSequence(0, 1, alpha=ALPHA)
    assert (sequence.lower, sequence.upper) == (0, 1)
    for value in chance.beta(8, 2, 2000):
        sequence.add(value, least=0, most=1)
    assert sequence.lower < 0.8 < sequence.upper
    assert sequence.upper - sequence.lower < 0.04


# --- ville, written by others -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("control", "treatment", "share"), [(0.7, 0.8, 0.5), (0.9, 0.7, 0.3), (0.5, 0.5, 0.5)])
def test_betting_agrees_with_ville(control: float, treatment: float, share: float) -> None:
    """Other bets, the same truth: both enclose it, and neither interval is much wider or anywhere else."""
    drawn = list(units(4000, control=control, treatment=treatment, share=share, seed=5))
    theirs = ville.BettingABTest(bounds=(0, 1), alpha=ALPHA, propensity=share)
    theirs.fit([outcome for outcome, _, _ in drawn], [float(treated) for _, treated, _ in drawn])
    ours = DifferenceSequence(alpha=ALPHA)
    for num, (outcome, treated, probability) in enumerate(drawn):
        ours.add(outcome, treated=treated, probability=probability)
        assert ours.lower < theirs.upper_[num]
        assert theirs.lower_[num] < ours.upper
    assert ours.lower < treatment - control < ours.upper
    assert theirs.interval()[0] < treatment - control < theirs.interval()[1]
    assert ours.upper - ours.lower < 1.1 * (theirs.interval()[1] - theirs.interval()[0])
    assert ours.mean == pytest.approx(float(theirs.estimate_[-1]), abs=2e-3)  # the first centre differs


def test_a_bounded_mean_agrees_with_ville() -> None:
    values = np.random.default_rng(11).beta(2, 6, 3000)
    theirs = ville.BettingCS(alpha=ALPHA).fit(values)
    ours = MeanConfidenceSequence(0, 1, alpha=ALPHA)
    for value in values:
        ours.add(value, least=0, most=1)
    assert ours.lower == pytest.approx(theirs.lower_[-1], abs=0.015)
    assert ours.upper == pytest.approx(theirs.upper_[-1], abs=0.015)
    assert ours.upper - ours.lower < 1.1 * (theirs.upper_[-1] - theirs.lower_[-1])


def test_the_asymptotic_sequence_is_villes() -> None:
    drawn = np.random.default_rng(2)
    treated = drawn.random(1200) < 0.3
    outcomes = drawn.lognormal(0, 0.5, 1200) + 0.2 * treated
    theirs = ville.AsymptoticABTest(alpha=ALPHA, propensity=0.3, min_samples=1)
    level = -2 * math.log(ALPHA)
    theirs._cs.rho_ = 1000 / (level + math.log1p(level))  # the one free choice
    # Theirs centres the first outcome on 0, ours on itself: the same for an outcome of 0.
    outcomes[0] = 0.0
    theirs.update(outcomes, treated.astype(float))
    ours = AsymptoticConfidenceSequence(alpha=ALPHA)
    for num, (outcome, is_treated) in enumerate(zip(outcomes, treated, strict=True)):
        ours.add(float(outcome), treated=bool(is_treated), probability=0.3)
        if treated[: num + 1].sum() < statistics.MIN_PER_ARM:
            assert (ours.lower, ours.upper) == (-math.inf, math.inf)
        else:
            assert ours.lower == pytest.approx(float(theirs.lower_[num]))
            assert ours.upper == pytest.approx(float(theirs.upper_[num]))
    assert math.isfinite(ours.lower)


def test_the_sample_ratio_of_two_arms_is_villes_beta_binomial() -> None:
    arms = (np.random.default_rng(4).random(800) < 0.35).astype(int)
    ours = SampleRatioTest([0.7, 0.3], alpha=0.01)
    theirs = [ville.BernoulliTest(0.3, prior=(0.3 * c, 0.7 * c)).fit(arms) for c in statistics._CONCENTRATIONS]
    for num, arm in enumerate(arms):
        ours.add(arm)
        mean = np.mean([test.e_values_[num] for test in theirs])
        assert float(ours.log_e) == pytest.approx(math.log(mean), abs=1e-9)


# --- sample ratio -----------------------------------------------------------------------------------------------------


def slow_sample_ratio(arms: list[int], shares: list[float]) -> float:
    """The Bayes factor from its formula, by gamma functions."""
    factors = []
    for concentration in statistics._CONCENTRATIONS:
        prior = [concentration * share for share in shares]
        counts = [arms.count(arm) for arm in range(len(shares))]
        log = math.lgamma(concentration) - math.lgamma(concentration + len(arms))
        for begin, count, share in zip(prior, counts, shares, strict=True):
            log += math.lgamma(begin + count) - math.lgamma(begin) - count * math.log(share)
        factors.append(math.exp(log))
    return math.log(sum(factors) / len(factors))


def test_sample_ratio_is_the_bayes_factor_multiplied_over_epochs() -> None:
    drawn = np.random.default_rng(9)
    first, second = drawn.choice(3, 200, p=[0.2, 0.5, 0.3]), drawn.choice(3, 300, p=[0.6, 0.3, 0.1])
    test = SampleRatioTest([0.5, 0.3, 0.2], alpha=0.01)
    for arm in first:
        test.add(arm)
    before = slow_sample_ratio(first.tolist(), [0.5, 0.3, 0.2])
    assert float(test.log_e) == pytest.approx(before)
    test.change([0.4, 0.4, 0.2])
    for arm in second:
        test.add(arm)
    assert float(test.log_e) == pytest.approx(before + slow_sample_ratio(second.tolist(), [0.4, 0.4, 0.2]))
    assert test.mismatch


def test_a_unit_in_an_arm_without_a_share_is_a_mismatch() -> None:
    test = SampleRatioTest([1.0, 0.0], alpha=0.01)
    test.add(0)
    assert not test.mismatch
    test.add(1)
    assert test.mismatch
    test.change([0.5, 0.5])
    test.add(0)
    assert test.mismatch


# --- guardrails -------------------------------------------------------------------------------------------------------


def slow_guardrail(values: list[float], bound: float, least: float) -> float:
    """Every start by itself: with half of the wealth at first, then with what the reserve lets go of at each."""
    starts = [0.5] + [0.5 / math.log2(n + 1) - 0.5 / math.log2(n + 2) for n in range(1, len(values))]
    gains = [(value - bound) / (bound - least) for value in values]
    wealth = sum(amount * slow_wealth(gains[start:]) for start, amount in enumerate(starts))
    return math.log(wealth + 1 - sum(starts))


def test_a_guardrail_is_the_sum_of_its_starts() -> None:
    values = (np.random.default_rng(6).random(80) < 0.12).astype(float)
    test = UpperBoundTest(0.05, alpha=0.01)
    assert test.log_e == pytest.approx(0)
    for num, value in enumerate(values, 1):
        test.add(float(value), least=0.0)
        assert test.log_e == pytest.approx(slow_guardrail(list(values[:num]), 0.05, 0.0))


def test_a_guardrail_notices_a_failure_after_a_long_good_time() -> None:
    test = UpperBoundTest(0.05, alpha=0.01)
    for _ in range(10_000):
        test.add(0.0, least=0.0)
    assert not test.breached
    for _ in range(8):
        test.add(1.0, least=0.0)
    assert test.breached
    test.add(0.0, least=0.0)
    assert test.breached


def test_what_befalls_both_arms_breaches_no_contrast() -> None:
    chance = np.random.default_rng(8)
    contrast, alone = ContrastTest(0.02, alpha=0.01), UpperBoundTest(0.05, alpha=0.01)
    for num in range(4000):
        failed = float(chance.random() < (0.01 if num < 2000 else 0.5))  # something behind both broke
        treated = bool(chance.random() < 0.1)
        contrast.add(failed, treated=treated)
        if treated:
            alone.add(failed, least=0.0)
    assert not contrast.breached
    assert alone.breached
    for _ in range(60):
        contrast.add(0.0, treated=False)
        contrast.add(1.0, treated=True)
    assert contrast.breached


# --- chance itself ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("share", [0.5, 0.1])
def test_few_false_winners_however_often_one_looks(rate: float, share: float) -> None:
    """The simulation in small: 300 runs of 400 units. ``slow`` has it at full size."""
    scenario = simulated.Scenario(control=rate, treatment=rate, share=share, num_units=400)
    verdicts, mismatch = simulated.run(scenario, num_runs=300, seed=1)
    assert verdicts["betting"].declared <= 0.05
    assert mismatch <= 0.05
    assert verdicts["naive z"].declared > 0.1  # or the runs say nothing


def test_real_differences_are_found_the_right_way_round() -> None:
    scenario = simulated.Scenario(control=0.5, treatment=0.7, share=0.5, num_units=800)
    verdicts, _ = simulated.run(scenario, num_runs=100, seed=2)
    assert verdicts["betting"].share_of(1) > 0.95
    assert verdicts["betting"].share_of(-1) == 0
    assert verdicts["betting"].median < 400


def test_the_simulation_prints_its_tables(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--runs", "4", "--units", "30"])
    printed = capsys.readouterr().out
    assert printed.count("\n### ") + printed.startswith("### ") == 9
    documented = (CHECKOUT / "docs" / "experiments.md").read_text(encoding="utf-8")
    rows = [line for line in printed.splitlines() if line.startswith("|")]
    for label in {row.split(" | ")[0] + " | " for row in rows}:
        assert f"\n{label}" in documented, "the page shows the tables of an older simulation"


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("share", [0.5, 0.1])
def test_two_thousand_tests_of_nothing(rate: float, share: float) -> None:
    """At most 5 % false winners of 2,000, and no more sample-ratio alarms than their α, at a look after every unit."""
    scenario = simulated.Scenario(control=rate, treatment=rate, share=share, num_units=10_000)
    verdicts, mismatch = simulated.run(scenario, num_runs=2000, seed=round(1000 * rate + 10 * share))
    print(json.dumps({"rate": rate, "share": share, "betting": verdicts["betting"].declared, "ratio": mismatch}))
    assert verdicts["betting"].declared <= 0.05
    assert mismatch <= 0.05


@pytest.mark.slow
def test_guardrails_are_as_quiet_as_they_promise() -> None:
    for relative in (False, True):
        at_the_bound = (0.05, 0.05) if not relative else (0.3, 0.32)
        breached, _ = simulated.guardrail(*at_the_bound, relative=relative, num_runs=1000, seed=3)
        assert breached <= 0.02


# --- Thompson ---------------------------------------------------------------------------------------------------------


def test_thompson_follows_the_better_arm_and_leaves_each_its_floor() -> None:
    shares = statistics.thompson_shares([50, 80, 10], [50, 20, 90], seed=1, floor=0.05)
    assert sum(shares) == pytest.approx(1)
    assert shares == pytest.approx([0.05, 0.9, 0.05], abs=0.01)
    assert shares == statistics.thompson_shares([50, 80, 10], [50, 20, 90], seed=1, floor=0.05)
    even = statistics.thompson_shares([0, 0], [0, 0], seed=2, floor=0.0)
    assert even == pytest.approx([0.5, 0.5], abs=0.02)
