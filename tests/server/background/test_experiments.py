"""The keeper's duty for experiments on a real database: counting, decisions, and takeover by another keeper."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from graftwork.adapters.experiments.exposures import ClosedUnit, Exposures
from graftwork.adapters.experiments.metrics import Metric
from graftwork.adapters.experiments.plan import DecisionRule, Guardrail, Ramp
from graftwork.adapters.feedback.interactions import Completion
from graftwork.adapters.feedback.lineage import Lineage
from graftwork.adapters.storage.leases import Lease, Leases
from graftwork.server.background import experiments
from graftwork.server.background.experiments import ExperimentController
from tests.adapters.running_experiments import ExperimentsHarness, arm, experiments_in, plan
from tests.adapters.versions import BASE, spec

AUTOMATIC = DecisionRule(automatic=True)
QUIET: dict[str, Any] = {"guardrails": ()}


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[ExperimentsHarness]:
    with experiments_in(tmp_path) as harness:
        yield harness


class Table:
    """A referee with a lease, and a clock that can be put forward."""

    def __init__(self, harness: ExperimentsHarness) -> None:
        self.trials = harness
        self.ahead = timedelta(0)
        self.referee = ExperimentController(
            harness.database,
            harness.registry,
            harness.experiments,
            harness.records.interactions,
            harness.records.feedback,
            harness.records.ids,
            now=lambda: datetime.now(UTC) + self.ahead,
        )
        lease = Leases(harness.database).acquire("keeper", f"referee-{id(self)}", seconds=600)
        assert lease is not None
        self.lease: Lease = lease

    def look(self, times: int = 1) -> dict[str, Any]:
        """Let it work; how the experiment stands then."""
        for _ in range(times):
            self.referee.run(self.lease)
        return self.reading

    @property
    def reading(self) -> dict[str, Any]:
        stored = Exposures(self.trials.database).last_reading("first")
        assert stored is not None
        return stored.reading

    def closed(self) -> list[ClosedUnit]:
        return list(Exposures(self.trials.database).closed("first"))


def ask_and_rate(harness: ExperimentsHarness, num: int, *, control: float, treatment: float, first: int = 0) -> None:
    """Users who each ask once and give a thumb; ``control`` and ``treatment`` are the shares that are up."""
    chance = random.Random(first)
    for number in range(first, first + num):
        id = harness.ask(f"user-{number}", seconds_ago=100)
        answered_by = harness.records.ids.read(id).arm
        good = chance.random() < (treatment if answered_by == "intents@2" else control)
        harness.say(id, thumb="up" if good else "down")


# --- what it counts ---------------------------------------------------------------------------------------------------


def test_a_unit_counts_once_with_all_that_came_of_it_in_its_window(harness: ExperimentsHarness) -> None:
    harness.start(of=plan(window_seconds=60))
    one = harness.ask("ann", seconds_ago=50, thumb="up")
    harness.ask("ann", seconds_ago=30, thumb="down", status="error")
    harness.ask("ann", seconds_ago=-70)  # after the window
    table = Table(harness)
    table.look()
    assert table.closed() == []
    harness.say(one, thumb="down")  # within it, and a change of mind
    table.ahead = timedelta(seconds=13)
    table.look(3)
    (unit,) = table.closed()
    assert unit.unit == harness.records.ids.unit(user="ann")
    assert (unit.arm, unit.epoch, unit.learned) == (harness.records.ids.read(one).arm, 1, False)
    assert (unit.outcome["thumb"], unit.outcome["error_rate"], unit.outcome["feedback_rate"]) == (0.0, 0.5, 1.0)


def test_only_ratings_that_were_asked_for_count_where_the_plan_says_so(harness: ExperimentsHarness) -> None:
    harness.start(of=plan(window_seconds=60, ratings="asked"))
    harness.ask("ann", seconds_ago=40, thumb="down")
    harness.ask("ann", seconds_ago=30, thumb="up", asked=True)
    harness.ask("bob", seconds_ago=30, thumb="up")
    harness.ask("cid", seconds_ago=20, asked=True)
    table = Table(harness)
    table.ahead = timedelta(seconds=60)
    reading = table.look()
    assert [(unit.outcome["thumb"], unit.outcome["feedback_rate"]) for unit in table.closed()] == [
        (1.0, 1.0),
        (None, None),
        (None, 0.0),
    ]
    assert reading["units"] == 3
    assert sum(found["judged"] for found in reading["arms"]) == 1


def test_what_is_said_after_the_window_does_not_count(harness: ExperimentsHarness) -> None:
    harness.start(of=plan(window_seconds=10))
    harness.ask("ann", seconds_ago=60, thumb="up")
    table = Table(harness)
    table.look()
    (unit,) = table.closed()
    assert unit.outcome["thumb"] is None


def test_requests_of_nobody_are_units_of_their_own(harness: ExperimentsHarness) -> None:
    harness.start(of=plan(window_seconds=50))
    ids = [harness.ask(None) for _ in range(3)]
    table = Table(harness)
    reading = table.look()
    assert [unit.unit for unit in table.closed()] == ids
    assert reading["units"] == 3
    assert sum(found["requests"] for found in reading["arms"]) == 3


def test_who_comes_to_the_treatment_by_a_ramp_stays_where_they_counted_first(harness: ExperimentsHarness) -> None:
    harness.start(of=plan(arm(1), arm(2, 0.01), window_seconds=50))
    users = [f"user-{number}" for number in range(60)]
    before = {user: harness.records.ids.read(harness.ask(user, seconds_ago=90)).arm for user in users}
    table = Table(harness)
    table.look()
    harness.experiments.set_weights("first", {"intents@2": 1.0}, actor="ann")
    for user in users:
        harness.ask(user, seconds_ago=80)
    reading = table.look()
    assert {unit.arm for unit in table.closed()} == set(before.values())
    assert len(table.closed()) == 60
    assert sum(found["requests"] for found in reading["arms"]) == 120


def test_epochs_are_told_apart_by_probability_and_time(harness: ExperimentsHarness) -> None:
    harness.start(of=plan(arm(1), arm(2, 0.2), window_seconds=50))
    for number in range(20):
        harness.ask(f"early-{number}", seconds_ago=1)
    harness.experiments.set_weights("first", {"intents@2": 0.7}, actor="ann")
    for number in range(20):
        harness.ask(f"late-{number}", seconds_ago=0)
    table = Table(harness)
    table.ahead = timedelta(seconds=100)
    reading = table.look()
    by_unit = {unit.unit: unit.epoch for unit in table.closed()}
    for when, epoch in (("early", 1), ("late", 2)):
        names = [harness.records.ids.unit(user=f"{when}-{number}") for number in range(20)]
        assert {by_unit[name] for name in names if name} == {epoch}
    assert not reading["sample_ratio"]["mismatch"]


def teach(harness: ExperimentsHarness, *learned: str) -> int:
    """A version that learned from these answers, and one that continues it; the number of the latter."""
    Lineage(harness.database).record("sha256:data", learned)
    parent, _ = harness.registry.add_version(
        "intents", spec("taught"), base=BASE, alias=None, data_digest="sha256:data"
    )
    child, _ = harness.registry.add_version("intents", spec("child"), base=BASE, alias=None, parent=parent.number)
    return child.number


def test_users_and_prompts_that_a_version_learned_from_are_left_out(harness: ExperimentsHarness) -> None:
    bob, prompt = "bob", {"messages": [{"role": "user", "content": "learned by heart"}]}
    other = {"messages": [{"role": "user", "content": "never seen"}]}
    learned = [
        harness.records.log(harness.records.mint(user=bob)),
        harness.records.log(harness.records.mint(), prompt=prompt),
    ]
    harness.start(of=plan(arm(1), arm(teach(harness, *learned), 0.5), window_seconds=50))
    harness.ask("bob", prompt=other, seconds_ago=90)
    harness.ask("carl", prompt=prompt, seconds_ago=89)
    harness.ask("dora", prompt=prompt, seconds_ago=88, status="error")
    harness.ask("dora", prompt=other, seconds_ago=87)
    harness.ask("emil", prompt=other, seconds_ago=86)
    table = Table(harness)
    reading = table.look()
    assert [unit.unit for unit in table.closed()] == [harness.records.ids.unit(user=user) for user in ("dora", "emil")]
    assert table.closed()[0].outcome["error_rate"] == 0.0
    assert (reading["units"], reading["learned"], reading["waiting"]) == (2, 2, 0)


def test_a_closed_group_of_users_counts_again_some_days_after_it_was_learned_from(harness: ExperimentsHarness) -> None:
    group = [f"user-{number}" for number in range(10)]
    prompts = [{"messages": [{"role": "user", "content": user}]} for user in group]
    learned = [
        harness.records.log(harness.records.mint(user=user, days_ago=2.0), user=user, prompt=prompt)
        for user, prompt in zip(group, prompts, strict=True)
    ]
    taught = teach(harness, *learned)
    harness.start(of=plan(arm(1), arm(taught, 0.5), window_seconds=50, learned_days=3.0))
    for user in group:
        harness.ask(user, seconds_ago=100)
    table = Table(harness)
    reading = table.look(2)
    assert (reading["units"], reading["learned"], table.closed()) == (0, 10, [])
    for user, prompt in zip(group, prompts, strict=True):
        harness.ask(user, seconds_ago=-86400 - 100, prompt=prompt)  # by heart
        harness.ask(user, seconds_ago=-86400 - 200, thumb="up")
    table.ahead = timedelta(days=1, seconds=170)
    reading = table.look(2)
    assert (reading["units"], reading["learned"], reading["waiting"]) == (0, 10, 10), "they asked what was learned"
    table.ahead = timedelta(days=1, seconds=300)
    reading = table.look(2)
    assert (reading["units"], reading["learned"], reading["waiting"]) == (10, 0, 0)
    assert not any(unit.learned for unit in table.closed())
    Leases(harness.database).release(table.lease)
    second = Table(harness)
    second.ahead = table.ahead
    assert second.look() == reading


def test_units_wait_for_the_end_of_their_window(harness: ExperimentsHarness) -> None:
    harness.start(of=plan(window_seconds=300))
    table = Table(harness)
    for number in range(20):
        harness.ask(f"user-{number}", seconds_ago=100 - number)
    reading = table.look()
    first = min(exposure.created_at for exposure in Exposures(harness.database).since("first", 0))
    assert (reading["units"], reading["waiting"]) == (0, 20)
    assert reading["next_at"] == first.timestamp() + 300 + experiments.GRACE_SECONDS
    table.ahead = timedelta(seconds=500)
    reading = table.look()
    assert (reading["units"], reading["waiting"], reading["next_at"]) == (20, 0, None)


def test_shadows_are_no_units_and_are_compared(harness: ExperimentsHarness) -> None:
    started = harness.start(of=plan(arm(1), arm(2, 0.5), arm(3, name="copycat", shadow=1.0), window_seconds=50))
    for number, said in enumerate(("card arrival", "card arrival", "something else entirely")):
        shown = harness.ask(
            f"user-{number}", completions=(Completion(index=0, text="card arrival", finish_reason="stop"),)
        )
        copy = harness.records.mint("intents@3", experiment="first", arm="copycat", probability=1.0)
        completion = (Completion(index=0, text=said, finish_reason="stop"),)
        harness.records.log(copy, completions=completion, metadata={"shadow_of": shown}, total_ms=80.0)
        harness.say(copy if number == 1 else shown, preferred_over=shown if number == 1 else copy)
    harness.ask("last")  # its copy never came
    failed = harness.records.mint("intents@3", experiment="first", arm="copycat", probability=1.0)
    harness.records.log(failed, status="error", completions=())
    table = Table(harness)
    reading = table.look()
    assert started.plan.shadows[0].name == "copycat"
    assert [found["arm"] for found in reading["arms"]] == ["intents@1", "intents@2"]
    (shadow,) = reading["shadows"]
    assert (shadow["sampled"], shadow["answered"], shadow["errors"], shadow["pairs"]) == (4, 4, 1, 3)
    assert (shadow["preferred"], shadow["rejected"]) == (1, 2)
    assert shadow["identical"] == pytest.approx(2 / 3)
    assert shadow["agreement"] == pytest.approx(2 / 3)
    assert shadow["latency_ratio"] == pytest.approx(2)
    assert len(table.closed()) == 4


# --- what it does -----------------------------------------------------------------------------------------------------


def test_the_better_version_is_promoted_with_what_it_was_decided_on(harness: ExperimentsHarness) -> None:
    harness.start(of=plan(rule=AUTOMATIC, window_seconds=150, **QUIET))
    ask_and_rate(harness, 260, control=0.2, treatment=0.95)
    table = Table(harness)
    table.ahead = timedelta(seconds=100)
    table.look()
    ended = harness.experiments.get("first")
    assert ended.outcome is not None
    assert (ended.outcome.decision, ended.outcome.arm, ended.outcome.actor) == ("promoted", "intents@2", "keeper")
    assert harness.live() == 2
    reading = ended.outcome.reading or {}
    assert reading["comparisons"][0]["improvement_lower"] > 0
    assert reading == table.reading
    # From what is on record the same is reached again.
    judge = experiments.ExperimentAnalysis(ended)
    for unit in table.closed():
        judge.add_unit(unit)
    again = judge.reading(ended.weights).to_json()
    assert list(again["comparisons"]) == reading["comparisons"]


def test_a_worse_version_is_taken_out(harness: ExperimentsHarness) -> None:
    harness.start(of=plan(rule=AUTOMATIC, window_seconds=150, **QUIET))
    ask_and_rate(harness, 260, control=0.95, treatment=0.2)
    table = Table(harness)
    table.ahead = timedelta(seconds=100)
    table.look()
    outcome = harness.experiments.get("first").outcome
    assert outcome is not None
    assert (outcome.decision, outcome.arm, harness.live()) == ("harm", "intents@2", 1)


def test_advice_is_given_once_and_changes_nothing(harness: ExperimentsHarness) -> None:
    harness.start(of=plan(window_seconds=150, **QUIET))
    ask_and_rate(harness, 260, control=0.2, treatment=0.95)
    table = Table(harness)
    table.ahead = timedelta(seconds=100)
    table.look(3)
    Leases(harness.database).release(table.lease)
    second = Table(harness)
    second.ahead = timedelta(seconds=100)
    second.look(2)
    actions = [(event.action, event.arm) for event in harness.experiments.history("first")]
    assert actions == [("advice", "intents@2"), ("start", None)]
    assert harness.experiments.get("first").running
    assert harness.live() == 1


def test_a_failing_arm_is_rolled_back_though_decisions_are_advice(harness: ExperimentsHarness) -> None:
    harness.registry.set_alias("intents", "live", 2, actor="ann")
    rail = Guardrail(metric=Metric.of("error_rate"), margin=0.05)
    harness.start(of=plan(guardrails=(rail,), window_seconds=3600))
    table = Table(harness)
    for number in range(400):
        good = harness.experiments.assign("intents", harness.records.ids.unit(user=f"user-{number}"), chat=True)
        assert good is not None
        status = "error" if good.arm.name == "intents@2" and number > 40 else "ok"
        harness.ask(f"user-{number}", status=status, seconds_ago=1)
        table.look()
        if not harness.experiments.get("first").running:
            break
    outcome = harness.experiments.get("first").outcome
    assert outcome is not None
    assert outcome.decision == "guardrail"
    assert "error_rate" in outcome.reason
    assert number < 300  # when it is depends on who falls to which arm
    assert harness.live() == 1
    event = harness.registry.history("intents", limit=1)[0]
    assert event.actor == "keeper"
    assert "guardrail" in (event.reason or "")
    assert [event.action for event in harness.experiments.history("first")] == ["stop", "rollback", "start"]


def test_a_ramp_goes_up_step_by_step(harness: ExperimentsHarness) -> None:
    ramp = Ramp(weights=(0.2, 0.6), min_units=3)
    harness.start(of=plan(arm(1), arm(2), ramp=ramp, window_seconds=50, **QUIET))
    table = Table(harness)
    ask_and_rate(harness, 60, control=0.5, treatment=0.5)
    table.look()
    assert harness.experiments.get("first").weights["intents@2"] == 0.6
    table.look(2)
    history = harness.experiments.history("first")
    assert [event.action for event in history] == ["weights", "start"]
    assert history[0].reason is not None
    assert "no guardrail" in history[0].reason


def test_thompson_sampling_follows_the_better_arm(harness: ExperimentsHarness) -> None:
    harness.start(of=plan(allocation="thompson", window_seconds=150, **QUIET))
    ask_and_rate(harness, 120, control=0.3, treatment=0.9)
    table = Table(harness)
    table.look()
    table.ahead = timedelta(seconds=110)
    table.look()
    weights = harness.experiments.get("first").weights
    assert weights["intents@2"] > 0.9
    assert weights["intents@1"] >= 0.05
    table.look()
    assert len(harness.experiments.get("first").epochs) == 2


def test_thompson_sampling_without_a_treatment_of_weight_changes_nothing(harness: ExperimentsHarness) -> None:
    """Its treatments may be taken out by an operator; plans of 0.1.0 may have had none from the beginning."""
    harness.start(of=plan(allocation="thompson", window_seconds=50, **QUIET))
    harness.experiments.set_weights("first", {"intents@2": 0.0}, actor="ann")
    ask_and_rate(harness, 20, control=0.3, treatment=0.9)
    table = Table(harness)
    table.ahead = timedelta(seconds=110)
    assert table.look(2)["units"] == 20
    assert harness.experiments.get("first").weights == {"intents@1": 1.0}


@pytest.mark.parametrize("rule", [DecisionRule(max_units=40), DecisionRule(until=datetime(2020, 1, 1, tzinfo=UTC))])
@pytest.mark.parametrize("lost", [False, True])
def test_its_end_comes_after_advice_and_after_an_alarm(
    harness: ExperimentsHarness, rule: DecisionRule, lost: bool
) -> None:
    harness.start(of=plan(rule=rule, window_seconds=150, **QUIET))
    for number in range(200):
        drawn = harness.experiments.assign("intents", harness.records.ids.unit(user=f"user-{number}"), chat=True)
        assert drawn is not None
        if not lost or drawn.arm.name == "intents@1":
            harness.ask(f"user-{number}", thumb="up" if drawn.arm.name == "intents@2" else "down")
    table = Table(harness)
    table.ahead = timedelta(seconds=100)
    table.look()
    outcome = harness.experiments.get("first").outcome
    assert outcome is not None
    assert (outcome.decision, outcome.arm, harness.live()) == ("undecided", None, 1)
    first = "alarm" if lost else "advice"
    assert [event.action for event in harness.experiments.history("first")] == ["stop", first, "start"]


def test_shares_that_are_wrong_raise_one_alarm_and_nothing_is_promoted(harness: ExperimentsHarness) -> None:
    harness.start(of=plan(rule=AUTOMATIC, window_seconds=150, **QUIET))
    chance = random.Random(1)
    for number in range(500):
        unit = harness.records.ids.unit(user=f"user-{number}")
        drawn = harness.experiments.assign("intents", unit, chat=True)
        assert drawn is not None
        if drawn.arm.name == "intents@2" and chance.random() < 0.6:
            continue  # lost on the way
        harness.ask(f"user-{number}", thumb="up" if drawn.arm.name == "intents@2" else "down")
    table = Table(harness)
    table.ahead = timedelta(seconds=100)
    table.look(3)
    assert [event.action for event in harness.experiments.history("first")] == ["alarm", "start"]
    assert table.reading["sample_ratio"]["mismatch"]
    assert harness.experiments.get("first").running


# --- arms that join, episodes, and the units' past --------------------------------------------------------------------


def test_an_arm_joins_while_it_runs(harness: ExperimentsHarness) -> None:
    harness.start(of=plan(arm(1), arm(2, 0.3), window_seconds=150))
    for number in range(40):
        harness.ask(f"user-{number}", seconds_ago=100, thumb="up")
    table = Table(harness)
    table.ahead = timedelta(seconds=100)
    assert len(table.look()["arms"]) == 2
    harness.experiments.add_arm("first", arm(3, 0.4), base_digest=BASE.digest, actor="ann")
    for number in range(30, 130):
        harness.ask(f"user-{number}", seconds_ago=-2, thumb="up")
    table.ahead = timedelta(seconds=300)
    reading = table.look()
    assert reading["units"] == 130
    joined = {unit.arm for unit in table.closed() if unit.epoch == 2}
    assert joined == {"intents@1", "intents@2", "intents@3"}
    first, late = reading["comparisons"]
    counted = [unit.arm for unit in table.closed()[40:]]
    assert late["units"] == counted.count("intents@1") + counted.count("intents@3")
    assert first["units"] == 40 + counted.count("intents@1") + counted.count("intents@2")
    assert not reading["sample_ratio"]["mismatch"]
    Leases(harness.database).release(table.lease)
    other = Table(harness)
    other.ahead = table.ahead
    assert other.look() == reading


def test_an_episode_was_asked_for_if_any_of_its_answers_was(harness: ExperimentsHarness) -> None:
    """The mark is drawn for each answer; the judgement stands at the last one."""
    harness.start(of=plan(unit="episode", window_seconds=150, ratings="asked"))
    ids = harness.records.ids
    for number, marks in enumerate([(True, False), (False, False), (False, True)]):
        answers = [
            harness.ask("ann", episode=f"trip-{number}", seconds_ago=100 - turn, asked=mark)
            for turn, mark in enumerate(marks)
        ]
        harness.say(answers[-1], thumb="up", episode=ids.episode(f"trip-{number}", key_id="local"))
    table = Table(harness)
    table.ahead = timedelta(seconds=100)
    table.look()
    thumbs = {unit.unit: unit.outcome["thumb"] for unit in table.closed()}
    assert [thumbs[ids.episode(f"trip-{number}", key_id="local") or ""] for number in range(3)] == [1.0, None, 1.0]


def test_an_episode_counts_once_with_its_judgement(harness: ExperimentsHarness) -> None:
    harness.start(of=plan(unit="episode", window_seconds=150))
    ids = harness.records.ids
    for number in range(12):
        answers = [harness.ask("ann", episode=f"trip-{number}", seconds_ago=100 - turn) for turn in range(3)]
        episode = ids.episode(f"trip-{number}", key_id="local")
        assert harness.records.interactions.last_of_episode(episode) == answers[-1]
        harness.say(answers[-1], thumb="up" if number else "down", episode=episode)
    harness.ask("bob", seconds_ago=100, thumb="up")
    table = Table(harness)
    table.ahead = timedelta(seconds=100)
    reading = table.look()
    units = {unit.unit: unit for unit in table.closed()}
    assert len(units) == 13
    assert units[ids.episode("trip-0", key_id="local")].outcome["thumb"] == 0.0
    assert str(ids.unit(user="bob")) in units, "without an episode it is the user"
    assert [found["requests"] for found in reading["arms"]] == [
        sum((3 if unit.unit != ids.unit(user="bob") else 1) for unit in units.values() if unit.arm == name)
        for name in ("intents@1", "intents@2")
    ]


def test_episodes_of_users_whom_a_version_learned_from_are_left_out(harness: ExperimentsHarness) -> None:
    learned = harness.records.log(harness.records.mint(user="bob"))
    prompt = {"messages": [{"role": "user", "content": "another"}]}
    harness.start(of=plan(arm(1), arm(teach(harness, learned), 0.5), unit="episode", window_seconds=50))
    harness.ask("bob", episode="one", prompt=prompt)
    harness.ask("carl", episode="two", prompt=prompt)
    table = Table(harness)
    reading = table.look()
    assert (reading["units"], reading["learned"]) == (1, 1)
    assert table.closed()[0].unit == harness.records.ids.episode("two", key_id="local")


@pytest.mark.parametrize(("covariate", "expected"), [("past", {"ann": 0.5, "bob": None}), ("none", {})])
def test_units_have_their_past(harness: ExperimentsHarness, covariate: Any, expected: dict[str, float | None]) -> None:
    for thumb in ("up", "down"):
        harness.say(harness.records.mint("intents@1", user="ann", days_ago=3), thumb=thumb)
    harness.start(of=plan(covariate=covariate, unit="episode", window_seconds=50))
    for user in ("ann", "bob"):
        harness.ask(user, episode=f"of {user}", thumb="up")
    table = Table(harness)
    table.look()
    ids = harness.records.ids
    found = {unit.unit: unit.covariate for unit in table.closed()}
    assert found == {ids.episode(f"of {user}", key_id="local"): expected.get(user) for user in ("ann", "bob")}


# --- that there is one, and that another goes on ----------------------------------------------------------------------


def test_another_referee_reaches_the_same_reading(harness: ExperimentsHarness) -> None:
    rails = (Guardrail(metric=Metric.of("error_rate"), margin=0.05), Guardrail(metric=Metric.of("score"), margin=0.2))
    harness.start(of=plan(window_seconds=150, guardrails=rails))
    table = Table(harness)
    table.ahead = timedelta(seconds=100)
    for start in range(0, 120, 30):
        ask_and_rate(harness, 30, control=0.6, treatment=0.6, first=start)
        reading = table.look()
    Leases(harness.database).release(table.lease)
    other = Table(harness)
    other.ahead = timedelta(seconds=100)
    other.look()
    assert other.reading == reading
    assert other.reading["units"] == 120
    assert [unit.unit for unit in other.closed()] == [unit.unit for unit in table.closed()]


def test_who_lost_the_lease_writes_nothing(harness: ExperimentsHarness) -> None:
    harness.start(of=plan(rule=AUTOMATIC, window_seconds=150, **QUIET))
    ask_and_rate(harness, 200, control=0.1, treatment=0.95)
    table = Table(harness)
    table.ahead = timedelta(seconds=100)
    Leases(harness.database).release(table.lease)
    Table(harness)
    with pytest.raises(ExceptionGroup):
        table.look()
    assert table.closed() == []
    assert harness.experiments.get("first").running


def test_an_experiment_that_cannot_be_tended_to_holds_up_no_other(
    harness: ExperimentsHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.registry.add_version("other", spec("o"), base=BASE, alias=None)
    harness.registry.add_version("other", spec("p"), base=BASE, alias=None)
    harness.experiments.start(
        "broken", plan().__class__(**{**vars(plan()), "adapter": "other"}), base_digest=BASE.digest, actor="ann"
    )
    harness.start(of=plan(window_seconds=50))
    harness.ask("ann")
    table = Table(harness)
    tend = table.referee._advance

    def fail(experiment: Any, fence: Any) -> None:
        if experiment.name == "broken":
            raise RuntimeError("broken")
        tend(experiment, fence)

    monkeypatch.setattr(table.referee, "_advance", fail)
    with pytest.raises(ExceptionGroup):
        table.look()
    assert table.reading["units"] == 1


def test_readings_are_kept_as_a_picture_over_time(harness: ExperimentsHarness) -> None:
    harness.start(of=plan(window_seconds=150, **QUIET))
    table = Table(harness)
    table.ahead = timedelta(seconds=100)
    for start in range(0, 90, 10):
        ask_and_rate(harness, 10, control=0.6, treatment=0.6, first=start)
        table.look(2)
    readings = Exposures(harness.database).readings("first")
    assert [reading.units for reading in readings] == list(range(10, 100, 10))
    assert [reading.units for reading in Exposures(harness.database).readings("first", limit=4)] == [30, 60, 90]
