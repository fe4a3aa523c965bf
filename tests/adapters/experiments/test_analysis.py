"""The statistics of an experiment, and the decision rule."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from graftwork.adapters.experiments.analysis import ExperimentAnalysis, ShadowPair
from graftwork.adapters.experiments.assignment import Split
from graftwork.adapters.experiments.decision import Recommendation, recommend
from graftwork.adapters.experiments.experiment import Epoch, Experiment
from graftwork.adapters.experiments.exposures import ClosedUnit, Exposure
from graftwork.adapters.experiments.metrics import Metric
from graftwork.adapters.experiments.plan import Arm, DecisionRule, ExperimentPlan, Guardrail, Ramp, validate_plan
from tests.adapters.running_experiments import arm, plan

T = datetime(2031, 5, 17, 12, tzinfo=UTC)


def experiment(of: ExperimentPlan | None = None, *weights: dict[str, float]) -> Experiment:
    """Running, with an epoch for each of ``weights`` after the first one, an hour apart."""
    named = validate_plan(of or plan(arm(1, name="a"), arm(2, 0.5, name="b")))
    split = Split.of(named.control.name, named.first_weights())
    epochs = [Epoch(number=1, at=T, split=split)]
    for number, changed in enumerate(weights, 2):
        split = split.resized(changed)
        epochs.append(Epoch(number=number, at=T + timedelta(hours=number - 1), split=split))
    return Experiment(name="e", plan=named, salt="s", started_at=T, started_by="ann", epochs=tuple(epochs))


def unit(number: int, arm: str, *, epoch: int = 1, learned: bool = False, **outcome: float | None) -> ClosedUnit:
    return ClosedUnit(unit=str(number), arm=arm, epoch=epoch, first_at=T, learned=learned, outcome=outcome)


def units(
    num: int,
    means: dict[str, float],
    weights: dict[str, float],
    *,
    metric: str = "thumb",
    epoch: int = 1,
    seed: int = 0,
) -> Iterator[ClosedUnit]:
    chance = random.Random(seed)
    for number in range(num):
        name = chance.choices(list(weights), list(weights.values()))[0]
        yield unit(number, name, epoch=epoch, **{metric: float(chance.random() < means[name])})


def request(arm: str, *, status: str = "ok", seconds: float = 1.0) -> Exposure:
    return Exposure(
        interaction_id="i",
        status=status,
        total_ms=1000 * seconds,
        completion_tokens=5,
        seq=1,
        unit="u",
        arm=arm,
        probability=0.5,
        created_at=T,
    )


def kinds(found: list[Recommendation]) -> list[tuple[str, str | None]]:
    return [(move.kind, move.arm) for move in found]


HALF = {"a": 0.5, "b": 0.5}


# --- the primary metric -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("better", "expected"), [("b", "promote"), ("a", "roll_back")])
@pytest.mark.parametrize("metric", ["thumb", "correction_rate"])
def test_the_better_arm_is_found_whichever_way_the_metric_points(better: str, expected: str, metric: str) -> None:
    of = experiment(plan(arm(1, name="a"), arm(2, 0.5, name="b"), metric=metric))
    analysis = ExperimentAnalysis(of)
    good, bad = (0.8, 0.5) if metric == "thumb" else (0.2, 0.5)
    for one in units(2000, {"a": bad, "b": bad, better: good}, HALF, metric=metric):
        analysis.add_unit(one)
        reading = analysis.reading(of.weights)
        if found := recommend(of, analysis, reading, T):
            assert kinds(found) == [(expected, "b")]
            assert reading.units < 1000
            break
    else:
        pytest.fail("no difference was found")
    (compared,) = reading.comparisons
    assert compared.lower is not None
    assert compared.upper is not None
    assert (compared.lower >= 0) == ((better == "b") == (metric == "thumb"))
    assert "after" in found[0].reason


def test_equal_arms_are_left_alone() -> None:
    of = experiment()
    analysis = ExperimentAnalysis(of)
    for one in units(1500, {"a": 0.7, "b": 0.7}, HALF):
        analysis.add_unit(one)
    assert recommend(of, analysis, analysis.reading(of.weights), T) == []


def test_a_margin_must_be_cleared() -> None:
    of = experiment(
        plan(arm(1, name="a"), arm(2, 0.5, name="b"), rule=DecisionRule(promote_above=0.5, stop_below=None))
    )
    analysis = ExperimentAnalysis(of)
    for one in units(3000, {"a": 0.5, "b": 0.8}, HALF):
        analysis.add_unit(one)
    reading = analysis.reading(of.weights)
    assert (reading.comparisons[0].improvement_lower or 0) > 0.2
    assert recommend(of, analysis, reading, T) == []


def test_units_without_a_value_do_not_count_unless_they_are_half_good() -> None:
    of = experiment()
    neutral = replace(of, plan=replace(of.plan, unrated="neutral"))
    for one, judged in ((of, 100), (neutral, 400)):
        analysis = ExperimentAnalysis(one)
        for number in range(400):
            name = "ab"[number % 2]
            analysis.add_unit(unit(number, name, thumb=float(name == "b") if number % 4 < 2 and number < 200 else None))
        reading = analysis.reading(one.weights)
        assert sum(found.judged for found in reading.arms) == judged
        assert reading.units == 400


def test_an_arm_that_joined_is_compared_with_who_came_after_it() -> None:
    named = validate_plan(plan(arm(1, name="a"), arm(2, 0.5, name="b")))
    late = Arm(name="c", version=3, weight=0.25, joined=2)
    of = replace(experiment(named, {"c": 0.25}), plan=replace(named, arms=(*named.arms, late)))
    analysis = ExperimentAnalysis(of)
    # Before it joined everybody was pleased: against those all that came later would seem bad.
    for one in units(400, {"a": 1.0, "b": 1.0}, HALF):
        analysis.add_unit(one)
    shares = {"a": 0.25, "b": 0.5, "c": 0.25}
    later = [*units(800, {"a": 0.3, "b": 0.3, "c": 0.9}, shares, epoch=2, seed=1)]
    for one in later:
        analysis.add_unit(replace(one, unit=f"late-{one.unit}"))
    reading = analysis.reading(of.weights)
    early, joined = reading.comparisons
    counted = {found.arm: found.units for found in reading.arms}
    assert early.units == counted["a"] + counted["b"]
    assert joined.units == early.units - 400 + counted["c"] - sum(one.arm == "b" for one in later)
    assert joined.difference == pytest.approx(0.6, abs=0.1)
    assert kinds(recommend(of, analysis, reading, T)) == [("promote", "c")]
    assert not reading.sample_ratio.mismatch


def test_a_guardrail_of_an_arm_that_joined_begins_with_it() -> None:
    rail = Guardrail(metric=Metric.of("error_rate"), margin=0.05)
    named = validate_plan(plan(arm(1, name="a"), arm(2, 0.5, name="b"), guardrails=(rail,)))
    late = Arm(name="c", version=3, weight=0.25, joined=2)
    of = replace(experiment(named, {"c": 0.25}), plan=replace(named, arms=(*named.arms, late)))
    analysis = ExperimentAnalysis(of)
    for _ in range(50):
        analysis.add_request(request("a", status="error"))
    for number in range(60):
        after = replace(request("ac"[number % 2]), created_at=T + timedelta(hours=2))
        analysis.add_request(replace(after, status="error" if after.arm == "c" else "ok"))
    before, joined = analysis.reading(of.weights).guardrails
    assert (before.observations, joined.observations) == (0, 30)
    assert joined.breached


def test_units_are_compared_with_their_own_past() -> None:
    """What their past explains makes the interval narrower; as long as none has a past, nothing changes."""
    chance = random.Random(3)
    analyses = {known: ExperimentAnalysis(experiment()) for known in (True, False)}
    for number in range(600):
        name, taste = chance.choice("ab"), chance.random()
        one = unit(number, name, thumb=float(chance.random() < taste))
        for known, analysis in analyses.items():
            analysis.add_unit(replace(one, covariate=round(taste) if known else None))
    (adjusted,), (plain,) = (analyses[known].reading(HALF).comparisons for known in (True, False))
    widths = [(found.upper or 0) - (found.lower or 0) for found in (adjusted, plain)]
    assert widths[0] < 0.97 * widths[1]
    assert (adjusted.explained > 0.15, plain.explained) == (True, 0.0)


def test_where_only_asked_for_ratings_count_silence_is_half_good_of_who_was_asked() -> None:
    of = experiment(plan(arm(1, name="a"), arm(2, 0.5, name="b"), unrated="neutral", ratings="asked"))
    analysis = ExperimentAnalysis(of)
    for number in range(400):
        asked = None if number % 4 < 2 else 0.0
        analysis.add_unit(unit(number, "ab"[number % 2], thumb=None, feedback_rate=asked))
    assert [found.judged for found in analysis.reading(of.weights).arms] == [100, 100]


@pytest.mark.parametrize(("ratings", "found"), [("all", [("promote", "b")]), ("asked", [])])
def test_who_rates_by_whim_makes_equal_arms_differ_and_who_is_asked_does_not(ratings: Any, found: list[Any]) -> None:
    """Half of either arm's answers are good. Of the control's the bad ones are rated, of the treatment's the good."""
    of = experiment(plan(arm(1, name="a"), arm(2, 0.5, name="b"), ratings=ratings, rule=DecisionRule(automatic=True)))
    analysis, chance = ExperimentAnalysis(of), random.Random(5)
    for number in range(2000):
        name, good, asked = "ab"[number % 2], chance.random() < 0.5, chance.random() < 0.2
        by_whim = chance.random() < (0.3 if good == (name == "b") else 0.1)
        rated = chance.random() < 0.6 if asked else by_whim and ratings == "all"
        analysis.add_unit(unit(number, name, thumb=float(good) if rated else None, feedback_rate=float(rated)))
    reading = analysis.reading(of.weights)
    assert not reading.sample_ratio.mismatch, "both are rated equally often, so no alarm would say it"
    assert kinds(recommend(of, analysis, reading, T)) == found


def test_who_is_left_out_is_counted_until_there_is_a_unit() -> None:
    of = experiment()
    analysis = ExperimentAnalysis(of)
    for _ in range(2):
        analysis.leave_out("1")
        analysis.leave_out("2")
    assert (analysis.num_units, analysis.reading(of.weights).learned) == (0, 2)
    analysis.add_unit(unit(2, "a", thumb=1.0))
    assert (analysis.num_units, analysis.reading(of.weights).learned) == (1, 1)


def test_what_was_learned_from_is_left_out_of_everything_but_the_shares() -> None:
    of = experiment()
    analysis, without = ExperimentAnalysis(of), ExperimentAnalysis(of)
    chance = random.Random(5)
    for number in range(600):
        name, learned = chance.choice("ab"), number % 3 == 0
        # The version knows the answers it learned.
        analysis.add_unit(unit(number, name, learned=learned, thumb=1.0 if learned and name == "b" else 0.5))
        if not learned:
            without.add_unit(unit(number, name, thumb=0.5))
    reading = analysis.reading(of.weights)
    assert (reading.units, reading.learned) == (600, 200)
    assert reading.comparisons == without.reading(of.weights).comparisons
    assert recommend(of, analysis, reading, T) == []


def test_each_treatment_is_compared_with_the_control_alone() -> None:
    of = experiment(plan(arm(1, name="a"), arm(2, 0.25, name="b"), arm(3, 0.25, name="c")))
    analysis = ExperimentAnalysis(of)
    weights = {"a": 0.5, "b": 0.25, "c": 0.25}
    for one in units(2400, {"a": 0.5, "b": 0.5, "c": 0.8}, weights, seed=1):
        analysis.add_unit(one)
    reading = analysis.reading(of.weights)
    assert [found.arm for found in reading.comparisons] == ["b", "c"]
    b, c = reading.comparisons
    assert b.units + c.units == reading.units + next(found.units for found in reading.arms if found.arm == "a")
    assert kinds(recommend(of, analysis, reading, T)) == [("promote", "c")]


def test_of_the_arms_that_pass_the_best_is_promoted() -> None:
    of = experiment(plan(arm(1, name="a"), arm(2, 0.25, name="b"), arm(3, 0.25, name="c"), arm(4, 0.25, name="d")))
    weights = dict.fromkeys("abcd", 0.25)
    analysis = ExperimentAnalysis(of)
    for one in units(4000, {"a": 0.4, "b": 0.6, "c": 0.9, "d": 0.1}, weights, seed=1):
        analysis.add_unit(one)
    (worse, best) = recommend(of, analysis, analysis.reading(of.weights), T)
    assert kinds([worse, best]) == [("roll_back", "d"), ("promote", "c")]
    assert best.reason.endswith("the best of b, c")


@pytest.mark.parametrize("metric", ["thumb", "correction_rate"])
def test_of_arms_that_are_equally_good_the_first_of_the_plan_is_promoted(metric: str) -> None:
    of = experiment(plan(arm(1, name="a"), arm(3, 0.25, name="c"), arm(2, 0.25, name="b"), metric=metric))
    analysis = ExperimentAnalysis(of)
    for number in range(400):
        for name in "aacb":
            analysis.add_unit(unit(number, name, **{metric: float((name == "a") != (metric == "thumb"))}))
    reading = analysis.reading(of.weights)
    same = replace(reading, comparisons=tuple(replace(reading.comparisons[0], arm=name) for name in "cb"))
    assert kinds(recommend(of, analysis, same, T)) == [("promote", "c")]
    sign = 1 if metric == "thumb" else -1
    better = replace(
        same,
        comparisons=tuple(
            replace(found, difference=sign * middle) for found, middle in zip(same.comparisons, (0.3, 0.4), strict=True)
        ),
    )
    assert kinds(recommend(of, analysis, better, T)) == [("promote", "b")]


def test_epochs_with_other_weights_are_weighed_by_their_own() -> None:
    """Good users come in the second epoch, when the treatment has half instead of a tenth: no arm is better for it."""
    of = experiment(plan(arm(1, name="a"), arm(2, 0.1, name="b")), {"b": 0.5})
    analysis = ExperimentAnalysis(of)
    for one in units(3000, {"a": 0.3, "b": 0.3}, {"a": 0.9, "b": 0.1}, seed=1):
        analysis.add_unit(one)
    for one in units(3000, {"a": 0.9, "b": 0.9}, HALF, epoch=2, seed=2):
        analysis.add_unit(one)
    reading = analysis.reading(of.weights)
    naive = [found.mean or 0 for found in reading.arms]
    assert naive[1] - naive[0] > 0.15
    assert abs(reading.comparisons[0].difference or 0) < 0.05
    assert recommend(of, analysis, reading, T) == []
    assert not reading.sample_ratio.mismatch


def test_latency_is_a_ratio() -> None:
    of = experiment(plan(arm(1, name="a"), arm(2, 0.5, name="b"), metric="latency"))
    analysis, chance = ExperimentAnalysis(of), random.Random(3)
    for number in range(1200):
        name = chance.choice("ab")
        analysis.add_unit(unit(number, name, latency=chance.gauss(0.0 if name == "a" else -0.35, 0.3)))
        if number == 150:
            early = analysis.reading(of.weights).comparisons[0]
            assert early.difference is None
    reading = analysis.reading(of.weights)
    (found,) = reading.comparisons
    assert found.difference == pytest.approx(-0.295, abs=0.05)  # 30 % faster
    assert (found.improvement_lower or 0) > 0.2
    assert reading.arms[0].mean == pytest.approx(1.0, abs=0.05)  # seconds
    assert kinds(recommend(of, analysis, reading, T)) == [("promote", "b")]


def test_a_range_is_in_its_own_units() -> None:
    minutes = Metric.of("metadata.minutes", range=(0, 60), goal="down")
    of = experiment(plan(arm(1, name="a"), arm(2, 0.5, name="b"), metric=minutes, rule=DecisionRule(promote_above=5.0)))
    analysis, chance = ExperimentAnalysis(of), random.Random(3)
    for number in range(1500):
        name = chance.choice("ab")
        analysis.add_unit(
            unit(number, name, **{"metadata.minutes": chance.uniform(20, 40) - (15 if name == "b" else 0)})
        )
    (found,) = analysis.reading(of.weights).comparisons
    assert found.difference == pytest.approx(-15, abs=3)
    assert kinds(recommend(of, analysis, analysis.reading(of.weights), T)) == [("promote", "b")]


# --- ends, ramps ------------------------------------------------------------------------------------------------------


def test_it_ends_after_so_many_units_or_then() -> None:
    of = experiment(
        plan(arm(1, name="a"), arm(2, 0.5, name="b"), rule=DecisionRule(max_units=50, until=T + timedelta(days=1)))
    )
    analysis = ExperimentAnalysis(of)
    for one in units(49, {"a": 0.5, "b": 0.5}, HALF):
        analysis.add_unit(one)
    assert recommend(of, analysis, analysis.reading(of.weights), T) == []
    assert kinds(recommend(of, analysis, analysis.reading(of.weights), T + timedelta(days=2))) == [("end", None)]
    analysis.add_unit(unit(50, "a", thumb=1.0))
    assert kinds(recommend(of, analysis, analysis.reading(of.weights), T)) == [("end", None)]


def test_a_ramp_widens_when_enough_was_seen_for_long_enough() -> None:
    ramp = Ramp(weights=(0.1, 0.5), min_units=5, min_seconds=60)
    of = experiment(plan(arm(1, name="a"), arm(2, name="b"), ramp=ramp))
    assert of.weights == {"a": 0.9, "b": 0.1}
    analysis = ExperimentAnalysis(of)
    later = T + timedelta(seconds=61)
    for number in range(40):
        analysis.add_unit(unit(number, "b" if number % 10 == 0 else "a", thumb=1.0))
    assert recommend(of, analysis, analysis.reading(of.weights), later) == []
    analysis.add_unit(unit(41, "b", thumb=1.0))
    assert recommend(of, analysis, analysis.reading(of.weights), T + timedelta(seconds=59)) == []
    (wider,) = recommend(of, analysis, analysis.reading(of.weights), later)
    assert (wider.kind, wider.arm, wider.weight) == ("widen", "b", 0.5)
    at_the_top = experiment(of.plan, {"b": 0.5})
    analysis = ExperimentAnalysis(at_the_top)
    for number in range(40):
        analysis.add_unit(unit(number, "ab"[number % 2], epoch=2, thumb=1.0))
    assert recommend(at_the_top, analysis, analysis.reading(at_the_top.weights), T + timedelta(hours=9)) == []


# --- guardrails -------------------------------------------------------------------------------------------------------

Bad = Callable[[ExperimentAnalysis, int], None]


def fails(analysis: ExperimentAnalysis, number: int) -> None:
    analysis.add_request(request("a"))
    analysis.add_request(request("b", status="error"))


def is_slow(analysis: ExperimentAnalysis, number: int) -> None:
    analysis.add_request(request("a", seconds=1.0))
    analysis.add_request(request("b", seconds=3.0))


def is_corrected(analysis: ExperimentAnalysis, number: int) -> None:
    analysis.add_unit(
        unit(number, "ab"[number % 2], correction_rate=float(number % 2), feedback_rate=float(number % 2 == 0))
    )


BREACHES: list[tuple[Guardrail, Bad]] = [
    (Guardrail(metric=Metric.of("error_rate"), margin=0.05), fails),
    (Guardrail(metric=Metric.of("error_rate"), limit=0.05), fails),
    (Guardrail(metric=Metric.of("latency", over=2.0), margin=0.1), is_slow),
    (Guardrail(metric=Metric.of("latency", over=2.0), limit=0.1), is_slow),
    (Guardrail(metric=Metric.of("correction_rate"), margin=0.1), is_corrected),
    (Guardrail(metric=Metric.of("correction_rate"), limit=0.3), is_corrected),
    (Guardrail(metric=Metric.of("feedback_rate"), margin=0.1), is_corrected),
    (Guardrail(metric=Metric.of("feedback_rate"), limit=0.3), is_corrected),
]


@pytest.mark.parametrize(("rail", "bad"), BREACHES)
def test_a_breach_takes_the_arm_out(rail: Guardrail, bad: Bad) -> None:
    of = experiment(plan(arm(1, name="a"), arm(2, 0.5, name="b"), guardrails=(rail,)))
    analysis = ExperimentAnalysis(of)
    for number in range(120):
        bad(analysis, number)
    (found, *_) = recommend(of, analysis, analysis.reading(of.weights), T)
    assert (found.kind, found.arm, found.is_breach) == ("roll_back", "b", True)
    assert rail.metric.label in found.reason
    gone = experiment(of.plan, {"b": 0.0})
    assert recommend(gone, analysis, analysis.reading(gone.weights), T) == []


@pytest.mark.parametrize(("rail", "_"), BREACHES)
def test_alike_arms_breach_nothing(rail: Guardrail, _: Bad) -> None:
    of = experiment(plan(arm(1, name="a"), arm(2, 0.5, name="b"), guardrails=(rail,)))
    analysis, chance = ExperimentAnalysis(of), random.Random(4)
    for number in range(1500):
        name = chance.choice("ab")
        analysis.add_request(
            request(name, status="error" if chance.random() < 0.02 else "ok", seconds=chance.uniform(0, 2.1))
        )
        rates = {"correction_rate": float(chance.random() < 0.2), "feedback_rate": float(chance.random() < 0.5)}
        analysis.add_unit(unit(number, name, **rates))
    assert recommend(of, analysis, analysis.reading(of.weights), T) == []


def test_a_breach_comes_before_a_promotion() -> None:
    rail = Guardrail(metric=Metric.of("error_rate"), margin=0.05)
    of = experiment(plan(arm(1, name="a"), arm(2, 0.5, name="b"), guardrails=(rail,)))
    analysis = ExperimentAnalysis(of)
    for number, one in enumerate(units(1000, {"a": 0.2, "b": 0.9}, HALF)):
        analysis.add_unit(one)
        fails(analysis, number)
    assert kinds(recommend(of, analysis, analysis.reading(of.weights), T)) == [("roll_back", "b"), ("promote", "b")]


# --- shares -----------------------------------------------------------------------------------------------------------


def test_after_a_mismatch_nothing_is_decided_but_guardrails_hold() -> None:
    of = experiment(plan(arm(1, name="a"), arm(2, 0.5, name="b")))
    analysis = ExperimentAnalysis(of)
    for one in units(600, {"a": 0.2, "b": 0.9}, {"a": 0.7, "b": 0.3}):
        analysis.add_unit(one)
    reading = analysis.reading(of.weights)
    assert reading.sample_ratio.mismatch
    assert kinds(recommend(of, analysis, reading, T)) == [("alarm", None)]
    for number in range(60):
        fails(analysis, number)
    assert kinds(recommend(of, analysis, analysis.reading(of.weights), T)) == [("roll_back", "b"), ("alarm", None)]


def test_ratings_that_come_from_one_arm_more_than_from_the_other_are_a_mismatch() -> None:
    of = experiment()
    ratio = rate_unequally(of).reading(of.weights).sample_ratio
    assert ratio.mismatch
    assert ratio.evidence < ratio.threshold < (ratio.evidence_rated or 0)


def rate_unequally(of: Experiment) -> ExperimentAnalysis:
    """Four in five users of b say that they like it, and three in ten of a."""
    analysis, chance = ExperimentAnalysis(of), random.Random(1)
    for number in range(800):
        name = chance.choice("ab")
        rated = chance.random() < (0.8 if name == "b" else 0.3)
        analysis.add_unit(unit(number, name, thumb=1.0 if rated else None))
    return analysis


@pytest.mark.parametrize(("unrated", "expected"), [("leave_out", [("alarm", None)]), ("neutral", [("promote", "b")])])
@pytest.mark.parametrize(
    ("ends", "end"),
    [({}, []), ({"max_units": 800}, [("end", None)]), ({"until": T}, [("end", None)]), ({"max_units": 801}, [])],
)
def test_ratings_may_be_unequally_frequent_where_the_unrated_count_and_every_experiment_ends(
    unrated: Any, expected: list[Any], ends: dict[str, Any], end: list[Any]
) -> None:
    rule = DecisionRule(**ends)
    of = experiment(plan(arm(1, name="a"), arm(2, 0.5, name="b"), unrated=unrated, rule=rule))
    analysis = rate_unequally(of)
    reading = analysis.reading(of.weights)
    assert reading.sample_ratio.mismatch == (unrated == "leave_out")
    assert (reading.sample_ratio.evidence_rated or 0) > reading.sample_ratio.threshold, "it is shown in either case"
    assert kinds(recommend(of, analysis, reading, T)) == [*expected, *end]


def test_wrong_shares_of_the_units_raise_the_alarm_even_where_the_unrated_count() -> None:
    of = experiment(plan(arm(1, name="a"), arm(2, 0.5, name="b"), unrated="neutral", rule=DecisionRule(max_units=600)))
    analysis = ExperimentAnalysis(of)
    for one in units(600, {"a": 0.2, "b": 0.9}, {"a": 0.7, "b": 0.3}):
        analysis.add_unit(one)
    found = recommend(of, analysis, analysis.reading(of.weights), T)
    assert kinds(found) == [("alarm", None), ("end", None)]
    assert "rated" not in found[0].reason


# --- all of it --------------------------------------------------------------------------------------------------------


def test_the_same_units_give_the_same_reading_and_it_is_json() -> None:
    of = experiment(plan(arm(1, name="a"), arm(2, 0.5, name="b"), arm(3, name="c", shadow=0.5)))
    readings: list[Any] = []
    for _ in range(2):
        analysis = ExperimentAnalysis(of)
        for one in units(200, {"a": 0.5, "b": 0.6}, HALF):
            analysis.add_unit(one)
            analysis.add_request(request(one.arm))
        analysis.add_shadow_counts("c", sampled=3, answered=2, errors=1)
        analysis.add_shadow_pair("c", ShadowPair(agreement=0.5, identical=False, log_length=0.0, log_latency=0.1))
        readings.append(analysis.reading(of.weights).to_json())
    assert json.loads(json.dumps(readings[0], allow_nan=False)) == json.loads(json.dumps(readings[1]))
    (shadow,) = readings[0]["shadows"]
    assert (shadow["sampled"], shadow["answered"], shadow["errors"], shadow["pairs"]) == (3, 2, 1, 1)
    assert (shadow["identical"], shadow["agreement"], shadow["length_ratio"]) == (0.0, 0.5, 1.0)
    assert readings[0]["arms"][0]["requests"] == readings[0]["arms"][0]["units"]


def test_nothing_is_known_of_nothing() -> None:
    of = experiment()
    reading = ExperimentAnalysis(of).reading(of.weights)
    assert reading.comparisons[0].difference is None
    assert reading.arms[0].mean is None
    assert recommend(of, ExperimentAnalysis(of), reading, T) == []
    json.dumps(reading.to_json(), allow_nan=False)
