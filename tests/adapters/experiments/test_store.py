"""Experiments in the database: assignment, permitted changes, and final states."""

from __future__ import annotations

import multiprocessing
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from graftwork.adapters.errors import Conflict, GraftworkError, InvalidRequest, NotFound
from graftwork.adapters.experiments.experiment import Experiment
from graftwork.adapters.experiments.metrics import Metric
from graftwork.adapters.experiments.plan import Arm, DecisionRule, ExperimentPlan, Guardrail, Ramp
from graftwork.adapters.experiments.store import Experiments
from graftwork.adapters.registry import Registry
from graftwork.adapters.storage.database import Database
from tests.adapters.running_experiments import ExperimentsHarness, arm, experiments_in, plan
from tests.adapters.versions import BASE


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[ExperimentsHarness]:
    with experiments_in(tmp_path) as harness:
        yield harness


def drawn_arms(location: Path, units: list[str]) -> list[str]:
    """In a process of its own."""
    database = Database(location)
    experiments = Experiments(database, Registry(database))
    draws = [experiments.assign("intents", unit, chat=True) for unit in units]
    return [draw.arm.name for draw in draws if draw is not None]


# --- who gets which arm -----------------------------------------------------------------------------------------------


def test_the_same_unit_gets_the_same_arm_in_every_process_and_after_restarts(
    harness: ExperimentsHarness, tmp_path: Path
) -> None:
    harness.start()
    units = [f"user-{number}" for number in range(300)]
    here = drawn_arms(tmp_path / "graftwork.db", units)
    assert here == [harness.experiments.assign("intents", unit, chat=True).arm.name for unit in units]  # type: ignore[union-attr]
    assert set(Counter(here)) == {"intents@1", "intents@2"}
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        others = pool.starmap(drawn_arms, [(tmp_path / "graftwork.db", units)] * 2)
    assert others == [here, here]


def test_requests_of_nobody_draw_for_themselves(harness: ExperimentsHarness) -> None:
    harness.start(of=plan(arm(1), arm(2, 0.3)))
    draws = [harness.experiments.assign("intents", None, chat=True) for _ in range(2000)]
    counts = Counter((draw.arm.name, draw.probability) for draw in draws if draw is not None)
    assert set(counts) == {("intents@1", 0.7), ("intents@2", 0.3)}
    assert abs(counts["intents@2", 0.3] - 600) < 100


def test_only_the_adapter_under_experiment_takes_part(harness: ExperimentsHarness) -> None:
    assert harness.experiments.assign("intents", "u", chat=True) is None
    harness.start()
    assert harness.experiments.assign("intents", "u", chat=True) is not None
    assert harness.experiments.assign("other", "u", chat=True) is None
    harness.experiments.stop("first", actor="ann", reason="enough")
    assert harness.experiments.assign("intents", "u", chat=True) is None


def test_what_plain_completions_cannot_do_alike_they_take_no_part_in(harness: ExperimentsHarness) -> None:
    harness.start(of=plan(arm(1), arm(1, 0.5, name="polite", system="Be polite.")))
    assert harness.experiments.assign("intents", "u", chat=True) is not None
    assert harness.experiments.assign("intents", "u", chat=False) is None


def test_changes_by_others_are_seen_at_the_next_request(harness: ExperimentsHarness, tmp_path: Path) -> None:
    other = ExperimentsHarness.on(Database(tmp_path / "graftwork.db"), harness.records)
    assert other.experiments.assign("intents", "u", chat=True) is None
    harness.start()
    assert other.experiments.assign("intents", "u", chat=True) is not None
    before = other.experiments.running_on("intents")
    harness.records.mint()
    harness.records.log(harness.records.mint())  # committed, and nothing to do with experiments
    assert other.experiments.running_on("intents") is before
    harness.experiments.stop("first", actor="ann", reason="enough")
    assert other.experiments.assign("intents", "u", chat=True) is None


# --- starting ---------------------------------------------------------------------------------------------------------


def test_arms_are_pinned_when_it_starts(harness: ExperimentsHarness) -> None:
    harness.registry.set_alias("intents", "candidate", 3, actor="ann")
    started = harness.start(of=plan(arm(None, alias="live"), arm(None, 0.25, alias="candidate"), arm(None, 0.25)))
    assert [(a.name, a.version, a.alias) for a in started.plan.arms] == [
        ("intents@1", 1, "live"),
        ("intents@3", 3, "candidate"),
        ("base", None, None),
    ]
    assert started.weights == {"intents@1": 0.5, "intents@3": 0.25, "base": 0.25}
    assert harness.experiments.get("first") == started


def test_a_plan_survives_the_database(harness: ExperimentsHarness) -> None:
    wanted = plan(
        arm(1),
        arm(2, sampling={"temperature": 0.2}, system="Kurz, bitte."),
        arm(3, shadow=0.1),
        metric=Metric.of("metadata.minutes", range=(0, 60), goal="down"),
        guardrails=(
            Guardrail(metric=Metric.of("latency", over=2.5), limit=0.2, alpha=0.02),
            Guardrail(metric=Metric.of("feedback_rate"), margin=0.1),
        ),
        rule=DecisionRule(promote_above=1.5, stop_below=None, max_units=10, until=datetime(2031, 5, 17, tzinfo=UTC)),
        ramp=Ramp(weights=(0.01, 0.1, 0.5), min_units=7, min_seconds=3.5),
        window_seconds=12.5,
        alpha=0.1,
        unrated="neutral",
        covariate="none",
        reserve=0.5,
        unit="episode",
        ratings="asked",
    )
    started = harness.start(of=wanted)
    assert harness.experiments.get("first").plan == started.plan
    assert ExperimentPlan.from_json(started.plan.to_json()) == started.plan
    assert started.weights["intents@2"] == 0.01
    # One that was stored before there were these compares as it did.
    stored = {name: value for name, value in started.plan.to_json().items() if name not in ("covariate", "reserve")}
    assert (ExperimentPlan.from_json(stored).covariate, ExperimentPlan.from_json(stored).reserve) == ("none", 0.0)


BAD_PLANS: list[tuple[dict[str, Any], str]] = [
    ({"arms": (arm(1),)}, "arms"),
    ({"arms": (arm(1, shadow=0.5), arm(2, shadow=0.5))}, "arms"),
    ({"arms": (arm(1), arm(1, 0.5))}, "arms[1].name"),
    ({"arms": (arm(1), arm(2, 1.5))}, "arms[1].weight"),
    ({"arms": (arm(1, 0.3), arm(2, 0.3))}, "arms"),
    ({"arms": (arm(1), arm(2, 0.7), arm(3, 0.7))}, "arms"),
    ({"arms": (arm(1), arm(99, 0.5))}, "arms[1].version"),
    ({"arms": (arm(1), arm(None, 0.5, alias="nothing"))}, "arms[1].version"),
    ({"arms": (arm(1), arm(2, 0.5, shadow=0.5))}, "arms[1].shadow"),
    ({"guardrails": (Guardrail(metric=Metric.of("latency"), margin=0.1),)}, "guardrails[0]"),
    ({"guardrails": (Guardrail(metric=Metric.of("error_rate")),)}, "guardrails[0]"),
    ({"guardrails": (Guardrail(metric=Metric.of("error_rate"), limit=0.1, margin=0.1),)}, "guardrails[0]"),
    ({"guardrails": (Guardrail(metric=Metric.of("error_rate"), limit=1.0),)}, "guardrails[0].limit"),
    ({"guardrails": (Guardrail(metric=Metric.of("error_rate"), margin=1.0),)}, "guardrails[0].margin"),
    ({"guardrails": (Guardrail(metric=Metric.of("error_rate"), margin=0.1, alpha=0.0),)}, "guardrails[0].alpha"),
    ({"rule": DecisionRule(promote_above=1.0)}, "decision.promote_above"),
    ({"rule": DecisionRule(promote_above=0.1, stop_below=0.2)}, "decision.stop_below"),
    ({"rule": DecisionRule(max_units=0)}, "decision.max_units"),
    ({"arms": (arm(1), arm(None, 0.5)), "rule": DecisionRule(automatic=True)}, "decision.automatic"),
    ({"ramp": Ramp(weights=(0.1, 0.5))}, "ramp"),
    ({"arms": (arm(1), arm(2)), "ramp": Ramp(weights=(0.5, 0.1))}, "ramp.weights"),
    ({"arms": (arm(1), arm(2)), "ramp": Ramp(weights=())}, "ramp.weights"),
    ({"arms": (arm(1), arm(2)), "ramp": Ramp(weights=(0.5,), min_units=0)}, "ramp"),
    ({"arms": (arm(1), arm(2)), "ramp": Ramp(weights=(0.5,)), "allocation": "thompson"}, "ramp"),
    ({"window_seconds": -1.0}, "window_seconds"),
    ({"reserve": 1.0}, "reserve"),
    ({"alpha": 0.0}, "alpha"),
    ({"metric": "error_rate", "unrated": "neutral"}, "unrated"),
    ({"metric": "error_rate", "ratings": "asked"}, "ratings"),
    ({"metric": "latency", "allocation": "thompson"}, "allocation"),
]


@pytest.mark.parametrize(("wrong", "param"), BAD_PLANS, ids=lambda value: value if isinstance(value, str) else None)
def test_plans_that_make_no_sense_are_refused_by_their_field(
    harness: ExperimentsHarness, wrong: dict[str, Any], param: str
) -> None:
    arms = wrong.pop("arms", (arm(1), arm(2, 0.5)))
    with pytest.raises(InvalidRequest) as refused:
        harness.start(of=plan(*arms, **wrong))
    wrong["arms"] = arms
    assert refused.value.param == param
    assert list(harness.experiments.find()) == []


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("thumbs", {}),
        ("metadata.", {}),
        ("thumb", {"over": 1.0}),
        ("latency", {"over": 0.0}),
        ("score", {"range": (0.0, 5.0)}),
        ("metadata.x", {"range": (5.0, 5.0)}),
        ("error_rate", {"goal": "up"}),
    ],
)
def test_metrics_that_cannot_be_are_refused(name: str, more: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Metric.of(name, **more)
    assert refused.value.param == "metric"


def test_versions_that_cannot_be_served_are_no_arms(harness: ExperimentsHarness) -> None:
    harness.registry.retire("intents", 3, actor="ann")
    with pytest.raises(Conflict, match="retired"):
        harness.start(of=plan(arm(1), arm(3, 0.5)))
    with pytest.raises(Conflict, match="another base"):
        harness.experiments.start("first", plan(), base_digest="sha256:another", actor="ann")


def test_one_experiment_an_adapter_and_names_are_used_once(harness: ExperimentsHarness) -> None:
    harness.start()
    with pytest.raises(Conflict, match="takes part in the experiment 'first'"):
        harness.start("second")
    harness.experiments.stop("first", actor="ann", reason="enough")
    with pytest.raises(Conflict, match="already"):
        harness.start("first")
    harness.start("second")
    with pytest.raises(InvalidRequest):
        harness.start("No such name")
    with pytest.raises(NotFound):
        harness.start("third", of=ExperimentPlan(**{**vars(plan()), "adapter": "nothing"}))


def test_of_many_that_start_at_once_one_does(harness: ExperimentsHarness) -> None:
    started: list[str] = []

    def start(number: int) -> None:
        try:
            harness.start(f"number-{number}")
        except Conflict:
            return
        started.append(f"number-{number}")

    threads = [threading.Thread(target=start, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(started) == 1
    assert [experiment.name for experiment in harness.experiments.find(running=True)] == started


# --- weights ----------------------------------------------------------------------------------------------------------


def test_arms_only_grow_and_nobody_flips_back(harness: ExperimentsHarness) -> None:
    harness.start(of=plan(arm(1), arm(2, 0.05)))
    units = [f"user-{number}" for number in range(2000)]

    def arms() -> list[str]:
        draws = [harness.experiments.assign("intents", unit, chat=True) for unit in units]
        return [draw.arm.name for draw in draws if draw is not None]

    before = arms()
    for weight in (0.1, 0.5, 1.0):
        harness.experiments.set_weights("first", {"intents@2": weight}, actor="ann")
        after = arms()
        assert all(new == "intents@2" for old, new in zip(before, after, strict=True) if old == "intents@2")
        assert abs(after.count("intents@2") / 2000 - weight) < 0.05
        before = after
    with pytest.raises(Conflict, match="would go back"):
        harness.experiments.set_weights("first", {"intents@2": 0.5}, actor="ann")
    assert [epoch.number for epoch in harness.experiments.get("first").epochs] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "weights",
    [{"intents@1": 0.2}, {"no": 0.2}, {"intents@2": 1.2}, {"intents@2": -0.1}, {"intents@2": 0.7, "intents@3": 0.7}],
)
def test_weights_that_cannot_be_are_refused(harness: ExperimentsHarness, weights: dict[str, float]) -> None:
    harness.start(of=plan(arm(1), arm(2, 0.2), arm(3, 0.2)))
    with pytest.raises(InvalidRequest) as refused:
        harness.experiments.set_weights("first", weights, actor="ann")
    assert refused.value.param == "weights"


def test_an_arm_that_was_taken_out_stays_out(harness: ExperimentsHarness) -> None:
    harness.start(of=plan(arm(1), arm(2, 0.3), arm(3, 0.3)))
    harness.experiments.set_weights("first", {"intents@2": 0.0}, actor="ann")
    with pytest.raises(Conflict, match="final"):
        harness.experiments.set_weights("first", {"intents@2": 0.1}, actor="ann")


def test_thompson_sampling_may_shrink_an_arm(harness: ExperimentsHarness) -> None:
    harness.start(of=plan(allocation="thompson"))
    changed = harness.experiments.set_weights("first", {"intents@2": 0.2}, actor="keeper")
    assert changed.weights == {"intents@1": 0.8, "intents@2": 0.2}


# --- arms that join ---------------------------------------------------------------------------------------------------


def join(harness: ExperimentsHarness, joining: Arm) -> Experiment:
    return harness.experiments.add_arm("first", joining, base_digest=BASE.digest, actor="ann")


def test_an_arm_joins_and_treatments_keep_their_units(harness: ExperimentsHarness) -> None:
    harness.start(of=plan(arm(1), arm(2, 0.3)))
    units = [f"user-{number}" for number in range(1000)]

    def arms() -> list[str]:
        draws = [harness.experiments.assign("intents", unit, chat=True) for unit in units]
        return [draw.arm.name for draw in draws if draw is not None]

    before = arms()
    joined = join(harness, arm(None, 0.2, alias="live", name="again"))
    assert joined.weights == pytest.approx({"intents@1": 0.5, "intents@2": 0.3, "again": 0.2})
    assert harness.experiments.get("first") == joined, "it is stored as it was returned"
    assert (joined.plan.arms[-1].version, joined.plan.arms[-1].joined, len(joined.epochs)) == (1, 2, 2)
    after = arms()
    assert {(old, new) for old, new in zip(before, after, strict=True) if old != new} == {("intents@1", "again")}
    assert abs(after.count("again") / 1000 - 0.2) < 0.05
    event = harness.experiments.history("first")[0]
    assert (event.action, event.arm, event.reason) == ("weights", "again", "again joins")
    assert (event.details or {})["joined"]["version"] == 1
    # It is widened, taken out and promoted as any other.
    harness.experiments.set_weights("first", {"again": 0.3}, actor="ann")
    harness.experiments.roll_back("first", "again", decision="harm", actor="ann", reason="bad", reading={})
    assert harness.experiments.get("first").running
    with pytest.raises(Conflict, match="was taken out"):
        harness.experiments.set_weights("first", {"again": 0.1}, actor="ann")
    with pytest.raises(IntegrityError), harness.database.write() as connection:
        connection.execute(text("UPDATE experiment_arms SET arm = '{}'"))


def test_the_error_is_shared_by_all_that_ever_join(harness: ExperimentsHarness) -> None:
    started = harness.start(of=plan(arm(1), arm(2, 0.2), arm(3, 0.2), alpha=0.1, reserve=0.2))
    assert [started.plan.alpha_of(treatment) for treatment in started.plan.treatments] == pytest.approx([0.04, 0.04])
    for number in range(3):
        joined = join(harness, arm(3, 0.1, name=f"late-{number}"))
    alphas = [joined.plan.alpha_of(treatment) for treatment in joined.plan.treatments]
    assert alphas == pytest.approx([0.04, 0.04, 0.01, 0.005, 0.0025]), "what was promised to the others stays"
    assert sum(alphas) < 0.1


BAD_ARMS: list[tuple[dict[str, Any], Arm, type[GraftworkError], str | None]] = [
    ({}, arm(3, 0.0), InvalidRequest, "weight"),
    ({}, arm(3, 0.5), InvalidRequest, "weight"),  # nothing would be left of the control
    ({}, arm(2, 0.1), InvalidRequest, "name"),
    ({}, arm(9, 0.1), InvalidRequest, "version"),
    ({}, arm(None, 0.1, alias="nowhere"), InvalidRequest, "version"),
    ({}, arm(3, 0.1, system="x" * 70_000), InvalidRequest, "system"),
    ({}, arm(3, shadow=0.5), InvalidRequest, "shadow"),
    ({"rule": DecisionRule(automatic=True)}, arm(3, 0.1, name="x", system="Hi."), InvalidRequest, "decision.automatic"),
    ({"arms": (arm(1), arm(2)), "ramp": Ramp(weights=(0.1, 0.9))}, arm(3, 0.1), InvalidRequest, "weight"),
    ({"reserve": 0.0}, arm(3, 0.1), Conflict, None),
]


@pytest.mark.parametrize("case", range(len(BAD_ARMS)))
def test_an_arm_that_cannot_join_changes_nothing(harness: ExperimentsHarness, case: int) -> None:
    changes, joining, error, param = BAD_ARMS[case]
    started = harness.start(of=plan(*changes.pop("arms", ()), **changes))
    with pytest.raises(error) as refused:
        join(harness, joining)
    assert refused.value.param == param
    assert harness.experiments.get("first") == started
    assert len(harness.experiments.history("first")) == 1


def test_none_joins_what_has_ended_or_never_was(harness: ExperimentsHarness) -> None:
    with pytest.raises(NotFound):
        join(harness, arm(3, 0.1))
    harness.start()
    harness.experiments.stop("first", actor="ann", reason="enough")
    with pytest.raises(Conflict) as refused:
        join(harness, arm(3, 0.1))
    assert refused.value.code == "experiment_ended"


def test_episodes_have_arms_where_the_plan_is_about_them(harness: ExperimentsHarness) -> None:
    def arms(unit: str, episodes: list[str | None]) -> set[str]:
        draws = [harness.experiments.assign("intents", unit, chat=True, episode=episode) for episode in episodes]
        return {draw.arm.name for draw in draws if draw is not None}

    episodes: list[str | None] = [f"episode-{number}" for number in range(20)]
    harness.start()
    assert len(arms("ann", episodes)) == 1
    harness.experiments.stop("first", actor="ann", reason="enough")
    harness.start("second", of=plan(unit="episode"))
    assert len(arms("ann", episodes)) == 2
    assert arms("ann", episodes[:1] * 9) == arms("bob", episodes[:1] * 9)
    assert len(arms("ann", [None] * 20)) == 1, "without an episode it is the user"


# --- ends -------------------------------------------------------------------------------------------------------------


def test_promoting_moves_live_and_ends_it_in_one_go(harness: ExperimentsHarness) -> None:
    harness.start()
    reading = {"units": 1}
    ended = harness.experiments.stop(
        "first", decision="promoted", arm="intents@2", actor="keeper", reason="better", reading=reading
    )
    assert harness.live() == 2
    assert not ended.running
    assert ended.outcome == harness.experiments.get("first").outcome
    assert ended.outcome is not None
    assert (ended.outcome.decision, ended.outcome.reading) == ("promoted", reading)
    event = harness.registry.history("intents", limit=1)[0]
    assert (event.action, event.actor, event.reason) == ("promote", "keeper", "first: better")


def test_an_end_is_final(harness: ExperimentsHarness) -> None:
    harness.start()
    harness.experiments.stop("first", actor="ann", reason="enough")
    for change in (
        lambda: harness.experiments.stop("first", actor="ann", reason="again"),
        lambda: harness.experiments.set_weights("first", {"intents@2": 0.9}, actor="ann"),
        lambda: harness.experiments.add_event("first", "advice", actor="ann", reason="so"),
    ):
        with pytest.raises(Conflict) as refused:
            change()
        assert refused.value.code == "experiment_ended"
    for statement in (
        "UPDATE experiments SET ended_at = NULL, outcome = NULL",
        "UPDATE experiments SET plan = '{}'",
        "DELETE FROM experiments",
        "UPDATE experiment_events SET reason = 'other'",
        "DELETE FROM experiment_epochs",
    ):
        with pytest.raises(IntegrityError), harness.database.write() as connection:
            connection.execute(text(statement))


def test_what_cannot_be_promoted_ends_nothing(harness: ExperimentsHarness) -> None:
    harness.start(of=plan(arm(1), arm(2, 0.5, name="polite", system="Be polite.")))
    with pytest.raises(Conflict, match="no alias"):
        harness.experiments.stop("first", decision="promoted", arm="polite", actor="ann", reason="nice")
    assert harness.experiments.get("first").running


def test_rolling_back_the_last_treatment_ends_it_and_leads_live_to_the_control(harness: ExperimentsHarness) -> None:
    harness.registry.set_alias("intents", "live", 2, actor="ann")
    harness.start()
    ended = harness.experiments.roll_back(
        "first", "intents@2", decision="guardrail", actor="keeper", reason="it fails", reading={"units": 3}
    )
    assert harness.live() == 1
    assert ended.weights == {"intents@1": 1.0}
    assert ended.outcome is not None
    assert ended.outcome.decision == "guardrail"
    assert [event.action for event in harness.experiments.history("first")] == ["stop", "rollback", "start"]
    assert harness.registry.history("intents", limit=1)[0].reason == "first: it fails"


def test_rolling_back_one_of_two_treatments_goes_on_with_the_other(harness: ExperimentsHarness) -> None:
    harness.start(of=plan(arm(1), arm(2, 0.3), arm(3, 0.3)))
    going_on = harness.experiments.roll_back(
        "first", "intents@2", decision="harm", actor="keeper", reason="worse", reading={}
    )
    assert going_on.running
    assert going_on.weights == {"intents@1": 0.7, "intents@3": 0.3}
    assert harness.live() == 1


# --- what it holds still ----------------------------------------------------------------------------------------------


def test_aliases_and_versions_under_experiment_stay_as_they_are(harness: ExperimentsHarness) -> None:
    harness.registry.set_alias("intents", "candidate", 3, actor="ann")
    harness.registry.set_alias("intents", "other", 3, actor="ann")
    harness.start(of=plan(arm(1), arm(None, 0.5, alias="candidate")))
    refused: list[tuple[str, Any]] = [
        ("live", lambda: harness.registry.set_alias("intents", "live", 2, actor="ann")),
        ("candidate", lambda: harness.registry.set_alias("intents", "candidate", 2, actor="ann")),
        ("retire", lambda: harness.registry.retire("intents", 1, actor="ann")),
    ]
    for _, change in refused:
        with pytest.raises(GraftworkError) as error:
            change()
        assert error.value.status == 409
    harness.registry.set_alias("intents", "other", 2, actor="ann")
    harness.registry.set_alias("intents", "live", 1, actor="ann")  # where it is
    harness.experiments.stop("first", actor="ann", reason="enough")
    harness.registry.set_alias("intents", "live", 2, actor="ann")


def test_moving_an_alias_can_end_the_experiment(harness: ExperimentsHarness) -> None:
    harness.start()
    with pytest.raises(InvalidRequest):
        harness.experiments.end_and_move(
            "intents",
            lambda connection: harness.registry.set_alias("intents", "live", 99, actor="ann", within=connection),
            actor="ann",
            reason="moved",
        )
    assert harness.experiments.get("first").running
    event = harness.experiments.end_and_move(
        "intents",
        lambda connection: harness.registry.set_alias("intents", "live", 3, actor="ann", within=connection),
        actor="ann",
        reason="live was moved to version 3",
    )
    assert event.to_version == harness.live() == 3
    outcome = harness.experiments.get("first").outcome
    assert outcome is not None
    assert (outcome.decision, outcome.reason) == ("stopped", "live was moved to version 3")


# --- reading ----------------------------------------------------------------------------------------------------------


def test_lists_are_pages_by_name(harness: ExperimentsHarness) -> None:
    for name in ("b", "a", "c"):
        harness.start(name)
        if name != "c":
            harness.experiments.stop(name, actor="ann", reason="enough")
    first = harness.experiments.find(limit=2)
    assert ([experiment.name for experiment in first], first.has_more) == (["a", "b"], True)
    assert [experiment.name for experiment in harness.experiments.find(after="b")] == ["c"]
    assert [experiment.name for experiment in harness.experiments.find(running=False)] == ["a", "b"]
    with pytest.raises(NotFound):
        harness.experiments.get("d")
    with pytest.raises(NotFound):
        harness.experiments.history("d")


def test_history_tells_everything_newest_first(harness: ExperimentsHarness) -> None:
    harness.start()
    harness.experiments.set_weights("first", {"intents@2": 0.6}, actor="bob", reason="it looks good")
    harness.experiments.add_event(
        "first", "advice", arm="intents@2", actor="keeper", reason="promote", details={"kind": "p"}
    )
    harness.experiments.stop("first", actor="ann", reason="enough", reading={"units": 5})
    history = harness.experiments.history("first")
    assert [(event.action, event.actor, event.reason) for event in history] == [
        ("stop", "ann", "enough"),
        ("advice", "keeper", "promote"),
        ("weights", "bob", "it looks good"),
        ("start", "ann", None),
    ]
    assert history[2].details == {"weights": {"intents@1": 0.4, "intents@2": 0.6}}
    assert history[0].details == {"decision": "stopped", "reading": {"units": 5}}
