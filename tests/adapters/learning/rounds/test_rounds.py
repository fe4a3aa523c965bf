"""Rounds: each step, who decides, what undoing one does, and that each step is taken once, also after a kill."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pytest

from graftwork.adapters.errors import Conflict, InvalidRequest, NotFound
from graftwork.adapters.experiments import store as store_module
from graftwork.adapters.experiments.guard import ExperimentGuard
from graftwork.adapters.experiments.metrics import Metric
from graftwork.adapters.experiments.plan import Arm, ExperimentPlan, Guardrail
from graftwork.adapters.experiments.store import Experiments
from graftwork.adapters.feedback.feedback import SubmittedFeedback
from graftwork.adapters.learning.jobs import Jobs
from graftwork.adapters.learning.rounds import rounds as rounds_module
from graftwork.adapters.learning.rounds.experiment import RoundExperiment, usual_metric
from graftwork.adapters.learning.rounds.policies import LearningPolicies
from graftwork.adapters.learning.rounds.round import STATES, Round
from graftwork.adapters.learning.rounds.rounds import Rounds, experiment_name
from graftwork.adapters.registry import Registry
from graftwork.adapters.storage.leases import Leases
from graftwork.adapters.webhooks.outbox import EVENT_TYPES
from graftwork.adapters.webhooks.webhooks import Webhooks
from tests.adapters.learning.rounds.test_policies import in_child, killed_at
from tests.adapters.records import BASE_ID, Records
from tests.adapters.versions import BASE, spec

PASS = {"outcome": "pass", "passed": True, "refusals": [], "doubts": []}
REFUSE = {"outcome": "refuse", "passed": False, "refusals": ["it forgot"], "doubts": []}
DOUBT = {"outcome": "inconclusive", "passed": False, "refusals": [], "doubts": ["12 rows"]}


@dataclass
class World:
    """A database with an adapter that learns by itself."""

    records: Records
    registry: Registry = field(init=False)
    jobs: Jobs = field(init=False)
    experiments: Experiments = field(init=False)
    policies: LearningPolicies = field(init=False)
    rounds: Rounds = field(init=False)

    def __post_init__(self) -> None:
        database = self.records.database
        self.registry = Registry(database, guard=ExperimentGuard())
        self.jobs, self.experiments = Jobs(database), Experiments(database, self.registry)
        self.policies = LearningPolicies(database, self.registry, self.jobs, base_id=BASE_ID)
        self.rounds = Rounds(database, self.registry, self.jobs, self.experiments, base_digest=BASE.digest)

    def say(self, **said: Any) -> None:
        what = SubmittedFeedback(interaction_id=self.records.mint("intents@1"), **(said or {"thumb": "up"}))
        self.records.feedback.add(what, key_id="k")

    def begin(self) -> Round:
        self.say()
        begun = self.policies.begin("intents")
        assert begun is not None, self.policies.get("intents")[1].waits_for
        return begun

    def end(self, gates: dict[str, Any] | None = PASS, *, content: object = "candidate", fail: bool = False) -> None:
        """What a worker does with the job under way."""
        claim = self.jobs.claim("w", "validating_files", seconds=60)
        assert claim is not None
        self.jobs.mark_validated(claim)
        claim = self.jobs.claim("w", "queued", seconds=60)
        assert claim is not None
        if fail:
            self.jobs.fail(claim, code="nan_loss", message="It diverged.")
            return
        self.jobs.succeed(claim, self.push(content, gates), metrics={}, trained_tokens=1)

    def push(self, content: object, gates: dict[str, Any] | None = None) -> str:
        metadata = {"rows": {"train": 8, "validation": 2}, **({} if gates is None else {"gates": gates})}
        version, _ = self.registry.add_version(
            "intents", spec(content), base=BASE, alias=None, metadata=metadata, data_digest="sha256:rows"
        )
        return version.id

    def look(self, id: str) -> Round:
        """What the keeper does."""
        while self.rounds.advance(id, fence=lambda connection: None) is not None:
            pass
        return self.rounds.get(id)

    def decide(self, name: str, decision: Literal["promoted", "harm"], arm: str) -> None:
        """What the keeper does at the end of an experiment."""
        if decision == "promoted":
            self.experiments.stop(name, decision="promoted", arm=arm, actor="keeper", reason="better")
        else:
            self.experiments.roll_back(name, arm, decision="harm", actor="keeper", reason="worse", reading={})


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with one version: migrating takes longer than most tests."""
    world = World(Records.new(tmp_path_factory.mktemp("empty") / "graftwork.db"))
    world.push("first")
    world.records.database.close()
    return Path(str(world.records.database))


@pytest.fixture
def world(empty: Path, tmp_path: Path) -> Iterator[World]:
    shutil.copy(empty, tmp_path / "graftwork.db")
    world = World(Records.at(tmp_path / "graftwork.db"))
    yield world
    world.records.database.close()


@pytest.fixture
def by_hand(world: World) -> World:
    world.policies.set("intents", after=1, actor="ann")
    return world


@pytest.fixture
def by_experiment(world: World) -> World:
    world.policies.set("intents", after=1, experiment=RoundExperiment(), actor="ann")
    return world


def live(world: World) -> int:
    return world.registry.adapter("intents").aliases["live"]


# --- steps ------------------------------------------------------------------------------------------------------------


def test_a_round_follows_its_job(by_hand: World) -> None:
    begun = by_hand.begin()
    assert (begun.number, begun.state, begun.continues, begun.live, begun.judgements) == (
        1, "collecting", "intents@1", "intents@1", {"thumb": 1},
    )  # fmt: skip
    assert by_hand.look(begun.id) == begun
    claim = by_hand.jobs.claim("w", "validating_files", seconds=60)
    assert claim is not None
    by_hand.jobs.mark_validated(claim)
    assert by_hand.look(begun.id).state == "training"
    claim = by_hand.jobs.claim("w", "queued", seconds=60)
    assert claim is not None
    by_hand.jobs.report(claim, progress={"phase": "gates"})
    assert by_hand.look(begun.id).state == "gating"
    by_hand.jobs.succeed(claim, by_hand.push("b", PASS), metrics={}, trained_tokens=1)
    ended = by_hand.look(begun.id)
    assert (ended.state, ended.candidate, ended.data_digest, ended.rows, ended.ended) == (
        "awaiting_decision", "intents@2", "sha256:rows", {"train": 8, "validation": 2}, False,
    )  # fmt: skip
    assert ended.gates is not None
    assert ended.gates.outcome == "pass"


@pytest.mark.parametrize(
    ("gates", "state"),
    [(PASS, "awaiting_decision"), (DOUBT, "awaiting_decision"), (None, "awaiting_decision"), (REFUSE, "set_aside")],
)
def test_without_an_experiment_people_decide(by_hand: World, gates: dict[str, Any] | None, state: str) -> None:
    begun = by_hand.begin()
    by_hand.end(gates)
    ended = by_hand.look(begun.id)
    assert (ended.state, live(by_hand)) == (state, 1)
    if state == "awaiting_decision":
        by_hand.registry.set_alias("intents", "live", 2, actor="ann", reason="I like it")
        promoted = by_hand.look(begun.id)
        assert promoted.decision is not None
        assert (promoted.state, promoted.decision.by, promoted.decision.reason, promoted.decision.replaced) == (
            "promoted", "ann", "I like it", "intents@1",
        )  # fmt: skip


def test_a_promotion_that_was_taken_back_between_two_looks_was_one(by_hand: World) -> None:
    begun = by_hand.begin()
    by_hand.end()
    by_hand.registry.set_alias("intents", "live", 2, actor="ann")
    by_hand.registry.rollback("intents", actor="ann")
    assert by_hand.look(begun.id).state == "promoted"


def test_a_failed_and_a_cancelled_job_end_their_rounds(by_hand: World) -> None:
    first = by_hand.begin()
    by_hand.end(fail=True)
    ended = by_hand.look(first.id)
    assert (ended.state, ended.reason, ended.candidate) == ("failed", "It diverged.", None)
    assert ended.ended_at is not None
    second = by_hand.policies.begin_now("intents", actor="ann")
    assert (second.number, second.created_by) == (2, "ann")
    by_hand.jobs.cancel(second.job, actor="ann")
    assert by_hand.look(second.id).state == "cancelled"


def test_the_same_bytes_again_are_set_aside(by_hand: World) -> None:
    begun = by_hand.begin()
    by_hand.end(content="first")
    ended = by_hand.look(begun.id)
    assert (ended.state, ended.candidate) == ("set_aside", "intents@1")


def test_a_retired_and_a_superseded_candidate_are_set_aside(by_hand: World) -> None:
    first = by_hand.begin()
    by_hand.end(content="b")
    assert by_hand.look(first.id).state == "awaiting_decision"
    second = by_hand.begin()
    by_hand.end(content="c")
    assert by_hand.look(first.id).state == "awaiting_decision"
    assert by_hand.look(second.id).state == "awaiting_decision"
    assert by_hand.look(first.id).reason == "round 2 has a newer candidate"
    by_hand.registry.retire("intents", 3, actor="ann")
    assert by_hand.look(second.id).reason == "intents@3 was retired"


# --- experiments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gates", [PASS, DOUBT])
def test_a_candidate_starts_its_experiment_and_wins_it(by_experiment: World, gates: dict[str, Any]) -> None:
    begun = by_experiment.begin()
    by_experiment.end(gates)
    running = by_experiment.look(begun.id)
    assert (running.state, running.experiment) == ("experimenting", "intents-round-1")
    experiment = by_experiment.experiments.get("intents-round-1")
    assert (experiment.weights, experiment.plan.metric.name, experiment.plan.rule.automatic) == (
        {"intents@1": 0.5, "intents@2": 0.5}, "thumb", True,
    )  # fmt: skip
    assert experiment.plan.rule.until is not None
    assert by_experiment.look(begun.id) == running
    by_experiment.say()
    _, status = by_experiment.policies.get("intents")
    assert (status.due, status.waits_for) == (False, "the end of the experiment intents-round-1")
    by_experiment.decide("intents-round-1", "promoted", "intents@2")
    ended = by_experiment.look(begun.id)
    assert ended.decision is not None
    assert (ended.state, live(by_experiment), ended.decision.by, ended.decision.replaced) == (
        "promoted", 2, "keeper", "intents@1",
    )  # fmt: skip
    following = by_experiment.begin()
    assert (following.number, following.continues) == (2, "intents@2")


def test_a_candidate_that_loses_is_set_aside(by_experiment: World) -> None:
    begun = by_experiment.begin()
    by_experiment.end()
    by_experiment.look(begun.id)
    by_experiment.decide("intents-round-1", "harm", "intents@2")
    ended = by_experiment.look(begun.id)
    assert (ended.state, ended.reason, live(by_experiment)) == ("set_aside", "harm: worse", 1)


def test_a_person_may_stop_the_experiment_for_either_arm(by_experiment: World) -> None:
    first = by_experiment.begin()
    by_experiment.end(content="b")
    by_experiment.look(first.id)
    by_experiment.experiments.stop(
        "intents-round-1", decision="promoted", arm="intents@1", actor="ann", reason="no, this"
    )
    assert by_experiment.look(first.id).state == "set_aside"
    second = by_experiment.begin()
    by_experiment.end(content="c")
    by_experiment.look(second.id)
    by_experiment.experiments.stop("intents-round-2", actor="ann", reason="enough")
    assert by_experiment.look(second.id).reason == "stopped: enough"


def test_another_experiment_is_waited_for(by_experiment: World) -> None:
    by_experiment.push("other")
    plan = ExperimentPlan(
        adapter="intents",
        arms=(Arm(name="", version=1, weight=0.5), Arm(name="", version=2, weight=0.5)),
        metric=Metric.of("thumb"),
    )
    by_experiment.experiments.start("mine", plan, base_digest=BASE.digest, actor="ann")
    begun = by_experiment.begin()
    by_experiment.end()
    waiting = by_experiment.look(begun.id)
    assert (waiting.state, waiting.experiment) == ("experimenting", None)
    assert "it waits for another experiment" in (waiting.reason or "")
    assert by_experiment.policies.get("intents")[1].waits_for == "the end of round 1"
    by_experiment.experiments.stop("mine", actor="ann", reason="done")
    assert by_experiment.look(begun.id).experiment == "intents-round-1"


def test_an_experiment_that_cannot_start_is_left_to_people(by_experiment: World) -> None:
    plan = ExperimentPlan(
        adapter="intents",
        arms=(Arm(name="", version=1, weight=0.5), Arm(name="base", version=None, weight=0.5)),
        metric=Metric.of("thumb"),
    )
    by_experiment.experiments.start("intents-round-1", plan, base_digest=BASE.digest, actor="ann")
    by_experiment.experiments.stop("intents-round-1", actor="ann", reason="done")
    begun = by_experiment.begin()
    by_experiment.end()
    ended = by_experiment.look(begun.id)
    assert ended.state == "awaiting_decision"
    assert "could not start: there was an experiment 'intents-round-1' already" in (ended.reason or "")


def test_the_metric_is_what_users_say_most_often(by_experiment: World) -> None:
    by_experiment.say(correction="card_lost")
    by_experiment.say(correction="card_found")
    begun = by_experiment.begin()
    assert begun.judgements == {"thumb": 1, "correction": 2}
    by_experiment.end()
    by_experiment.look(begun.id)
    assert by_experiment.experiments.get("intents-round-1").plan.metric.name == "correction_rate"
    assert usual_metric({}).name == "thumb"
    assert usual_metric({"score": 3, "thumb": 2}).name == "score"


def test_the_settings_of_an_experiment_are_kept_and_used(world: World) -> None:
    settings = RoundExperiment(
        metric=Metric.of("latency", over=2),
        weight=0.2,
        guardrails=(Guardrail(metric=Metric.of("thumb"), margin=0.1),),
        window_seconds=60,
        max_units=500,
        days=3,
        alpha=0.1,
    )
    world.policies.set("intents", after=1, experiment=settings, actor="ann")
    assert world.policies.get("intents")[0].experiment == settings
    begun = world.begin()
    # What the policy said when it began counts.
    world.policies.set("intents", after=1, actor="ann")
    world.end()
    world.look(begun.id)
    plan = world.experiments.get("intents-round-1").plan
    assert (plan.metric, plan.guardrails, plan.window_seconds, plan.alpha, plan.rule.max_units) == (
        settings.metric, settings.guardrails, 60, 0.1, 500,
    )  # fmt: skip
    assert plan.arms[1].weight == 0.2
    assert plan.rule.until is not None
    assert timedelta(days=2.9) < plan.rule.until - datetime.now(UTC) < timedelta(days=3)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"weight": 0.0}, "experiment.weight"),
        ({"weight": 1.0}, "experiment.weight"),
        ({"days": 0.0}, "experiment.days"),
        ({"days": 1e5}, "experiment.days"),
        ({"window_seconds": -1.0}, "experiment.window_seconds"),
        ({"alpha": 2.0}, "experiment.alpha"),
        ({"max_units": 10**9}, "experiment.max_units"),
        ({"guardrails": (Guardrail(metric=Metric.of("tokens"), limit=3),)}, "experiment.guardrails[0]"),
    ],
)
def test_settings_that_no_experiment_can_have_are_refused(world: World, change: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        world.policies.set("intents", experiment=replace(RoundExperiment(), **change), actor="ann")
    assert refused.value.param == param
    assert world.policies.all() == []


def test_names_of_experiments_fit_and_differ(by_hand: World) -> None:
    begun = by_hand.begin()
    names = {experiment_name(replace(begun, adapter=adapter, number=123)) for adapter in ("a" * 64, "a" * 63 + "b")}
    assert len(names) == 2
    assert all(len(name) <= 64 for name in names)


# --- undoing ----------------------------------------------------------------------------------------------------------


def test_a_round_that_trains_is_undone_by_ending_its_job(by_hand: World) -> None:
    begun = by_hand.begin()
    undone = by_hand.rounds.undo(begun.id, actor="ann", reason="wrong data")
    assert (undone.state, undone.reason, by_hand.jobs.get(begun.job).status) == ("undone", "wrong data", "cancelled")
    with pytest.raises(Conflict, match="is undone: nothing of it"):
        by_hand.rounds.undo(begun.id, actor="ann")


def test_one_whose_job_has_just_ended_is_undone_as_what_came_of_it(by_hand: World) -> None:
    begun = by_hand.begin()
    by_hand.end()
    by_hand.registry.set_alias("intents", "candidate", 1, actor="job")
    by_hand.registry.set_alias("intents", "candidate", 2, actor="job")
    undone = by_hand.rounds.undo(begun.id, actor="ann")
    assert (undone.state, undone.candidate) == ("undone", "intents@2")
    assert by_hand.registry.adapter("intents").aliases == {"live": 1, "candidate": 1}


def test_one_in_its_experiment_is_undone_by_stopping_that(by_experiment: World) -> None:
    begun = by_experiment.begin()
    by_experiment.end()
    by_experiment.look(begun.id)
    by_experiment.rounds.undo(begun.id, actor="ann")
    assert not by_experiment.experiments.get("intents-round-1").running
    assert by_experiment.look(begun.id).state == "undone"


def test_one_that_was_promoted_is_undone_by_going_back(by_experiment: World) -> None:
    begun = by_experiment.begin()
    by_experiment.end()
    by_experiment.look(begun.id)
    by_experiment.decide("intents-round-1", "promoted", "intents@2")
    by_experiment.look(begun.id)
    undone = by_experiment.rounds.undo(begun.id, actor="ann", reason="users complain")
    assert (undone.state, live(by_experiment)) == ("undone", 1)
    assert by_experiment.registry.history("intents")[0].reason == "users complain"
    # What it learned from is learned again, on top of what is live now.
    assert by_experiment.begin().continues == "intents@1"


def test_undone_between_two_looks_of_the_keeper(by_experiment: World) -> None:
    begun = by_experiment.begin()
    by_experiment.end()
    by_experiment.look(begun.id)
    by_experiment.decide("intents-round-1", "promoted", "intents@2")
    undone = by_experiment.rounds.undo(begun.id, actor="ann")  # as far as the round knows it is in its experiment
    assert (undone.state, live(by_experiment)) == ("undone", 1)


def test_undone_after_a_person_promoted_it_unseen(by_hand: World) -> None:
    begun = by_hand.begin()
    by_hand.end()
    by_hand.look(begun.id)
    by_hand.registry.set_alias("intents", "live", 2, actor="ann")
    assert by_hand.rounds.undo(begun.id, actor="ann").state == "undone"
    assert live(by_hand) == 1
    with pytest.raises(Conflict, match="none before it to go back to"):
        by_hand.registry.rollback("intents", actor="ann")  # never forward again


def test_promoted_by_a_person_who_ends_the_experiment_with_that(by_experiment: World) -> None:
    begun = by_experiment.begin()
    by_experiment.end()
    by_experiment.look(begun.id)
    by_experiment.experiments.end_and_move(
        "intents",
        lambda connection: by_experiment.registry.set_alias("intents", "live", 2, actor="ann", within=connection),
        actor="ann",
        reason="enough seen",
    )
    ended = by_experiment.look(begun.id)
    assert ended.decision is not None
    assert (ended.state, ended.decision.by, ended.decision.replaced) == ("promoted", "ann", "intents@1")


def test_one_that_was_set_aside_and_promoted_later_can_be_undone(by_experiment: World) -> None:
    begun = by_experiment.begin()
    by_experiment.end()
    by_experiment.look(begun.id)
    by_experiment.experiments.stop("intents-round-1", decision="undecided", actor="keeper", reason="14 days")
    assert by_experiment.look(begun.id).state == "set_aside"
    by_experiment.registry.set_alias("intents", "live", 2, actor="ann")
    assert by_experiment.rounds.undo(begun.id, actor="ann").state == "undone"
    assert live(by_experiment) == 1


def test_a_round_on_top_has_to_be_undone_first(by_hand: World) -> None:
    first = by_hand.begin()
    by_hand.end()
    by_hand.registry.set_alias("intents", "live", 2, actor="ann")
    by_hand.look(first.id)
    second = by_hand.begin()
    assert second.continues == "intents@2"
    with pytest.raises(Conflict, match=second.id) as refused:
        by_hand.rounds.undo(first.id, actor="ann")
    assert (refused.value.code, live(by_hand)) == ("round_under_way", 2)
    by_hand.rounds.undo(second.id, actor="ann")
    by_hand.rounds.undo(first.id, actor="ann")
    assert live(by_hand) == 1


def test_an_older_version_that_comes_out_again_was_not_promoted_by_that(by_hand: World) -> None:
    by_hand.push("second")
    by_hand.registry.set_alias("intents", "live", 2, actor="ann")
    begun = by_hand.begin()
    by_hand.end(content="first")  # the bytes of intents@1, which was live before
    assert (by_hand.look(begun.id).candidate, by_hand.look(begun.id).state) == ("intents@1", "awaiting_decision")


def test_what_has_no_effect_any_more_cannot_be_undone(by_hand: World) -> None:
    begun = by_hand.begin()
    by_hand.end()
    by_hand.registry.set_alias("intents", "live", 2, actor="ann")
    by_hand.look(begun.id)
    by_hand.push("third")
    by_hand.registry.set_alias("intents", "live", 3, actor="ann")
    with pytest.raises(Conflict, match="intents@2 is not live any more, intents@3 is"):
        by_hand.rounds.undo(begun.id, actor="ann")
    with pytest.raises(NotFound, match="there is no round"):
        by_hand.rounds.undo("round-0", actor="ann")
    assert (by_hand.rounds.get(begun.id).state, live(by_hand)) == ("promoted", 3)


def test_a_running_experiment_of_others_forbids_going_back(by_hand: World) -> None:
    begun = by_hand.begin()
    by_hand.end()
    by_hand.registry.set_alias("intents", "live", 2, actor="ann")
    by_hand.look(begun.id)
    plan = ExperimentPlan(
        adapter="intents",
        arms=(Arm(name="", version=2, weight=0.5), Arm(name="", version=1, weight=0.5)),
        metric=Metric.of("thumb"),
    )
    by_hand.experiments.start("mine", plan, base_digest=BASE.digest, actor="ann")
    with pytest.raises(Conflict) as refused:
        by_hand.rounds.undo(begun.id, actor="ann")
    assert (refused.value.code, live(by_hand)) == ("under_experiment", 2)


# --- beginning by hand, lists, events ---------------------------------------------------------------------------------


def test_begun_by_hand_without_waiting(world: World) -> None:
    with pytest.raises(NotFound, match="no learning policy"):
        world.policies.begin_now("intents", actor="ann")
    world.policies.set("intents", after=100, actor="ann")
    with pytest.raises(Conflict) as nothing:
        world.policies.begin_now("intents", actor="ann")
    assert nothing.value.code == "no_judgements"
    world.say()
    begun = world.policies.begin_now("intents", actor="ann")
    assert (begun.state, begun.created_by, world.jobs.get(begun.job).created_by) == ("collecting", "ann", "ann")
    with pytest.raises(Conflict) as busy:
        world.policies.begin_now("intents", actor="ann")
    assert busy.value.code == "round_under_way"


def test_rounds_are_listed_newest_first(by_hand: World) -> None:
    made = []
    for _ in range(3):
        begun = by_hand.begin()
        by_hand.rounds.undo(begun.id, actor="ann")
        made.append(begun.id)
    first = by_hand.rounds.find(limit=2)
    assert ([round_.id for round_ in first], first.has_more) == (made[:0:-1], True)
    assert [round_.id for round_ in by_hand.rounds.find(after=first[-1].id)] == made[:1]
    assert list(by_hand.rounds.find(state="promoted")) == list(by_hand.rounds.find(adapter="other")) == []
    with pytest.raises(InvalidRequest, match="after names no round"):
        by_hand.rounds.find(after="round-0")


def test_every_state_is_an_event(by_experiment: World) -> None:
    assert {f"round.{state}" for state in STATES} == {type for type in EVENT_TYPES if type.startswith("round.")}
    webhook = Webhooks(by_experiment.records.database).create("https://hooks.example/x", actor="ann")
    begun = by_experiment.begin()
    by_experiment.end()
    by_experiment.look(begun.id)
    by_experiment.decide("intents-round-1", "promoted", "intents@2")
    by_experiment.look(begun.id)
    told = Webhooks(by_experiment.records.database).deliveries(webhook.id)
    assert [delivery.type for delivery in reversed(told)] == [
        "round.collecting", "fine_tuning.job.succeeded", "round.experimenting", "round.promoted",
    ]  # fmt: skip


# --- once, whatever happens -------------------------------------------------------------------------------------------


def test_many_look_at_once_and_one_starts_the_experiment(by_experiment: World, tmp_path: Path) -> None:
    begun = by_experiment.begin()
    by_experiment.end()
    others = [World(Records.at(tmp_path / "graftwork.db")) for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        states = list(pool.map(lambda other: other.look(begun.id).state, others))
    assert states == ["experimenting"] * 6
    assert len(by_experiment.experiments.history("intents-round-1")) == 1
    for other in others:
        other.records.database.close()


def test_who_lost_the_lease_takes_no_step(by_experiment: World) -> None:
    begun = by_experiment.begin()
    by_experiment.end()
    leases = Leases(by_experiment.records.database)
    stale = leases.acquire("keeper", "a", seconds=60)
    assert stale is not None
    leases.release(stale)
    assert leases.acquire("keeper", "b", seconds=60) is not None
    with pytest.raises(Conflict):
        by_experiment.rounds.advance(begun.id, fence=lambda connection: leases.check(connection, stale))
    assert by_experiment.rounds.get(begun.id) == begun


@pytest.mark.parametrize("step", [None, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_any_line_each_step_is_taken_once(empty: Path, tmp_path: Path, step: int | None) -> None:
    """From the end of the job to the promotion, in one process that dies at a line, and another that goes on."""
    files = frozenset({rounds_module.__file__, store_module.__file__})

    def fresh(name: str) -> tuple[World, Round]:
        shutil.copy(empty, tmp_path / name)
        world = World(Records.at(tmp_path / name))
        world.policies.set("intents", after=1, experiment=RoundExperiment(), actor="ann")
        begun = world.begin()
        world.end()
        return world, begun

    def go_on(world: World, id: str) -> None:
        if world.look(id).state == "experimenting":
            world.decide("intents-round-1", "promoted", "intents@2")
            world.look(id)

    world, begun = fresh("all.db")
    with killed_at(None, files) as seen:
        go_on(world, begun.id)
    expected = _told(world, begun.id)
    assert expected[0] == ("promoted", 2)
    world.records.database.close()
    lines = range(1, seen[0] + 1, step or seen[0] // 6)
    assert len(lines) >= 6
    for line in lines:
        world, begun = fresh(f"{line}.db")

        def die(line: int = line, world: World = world, id: str = begun.id) -> None:
            with killed_at(line, files):
                go_on(world, id)

        assert in_child(die) == -signal.SIGKILL, line
        go_on(world, begun.id)
        assert _told(world, begun.id) == expected, line
        world.records.database.close()
        os.unlink(tmp_path / f"{line}.db")


def _told(world: World, id: str) -> tuple[Any, ...]:
    ended = world.rounds.get(id)
    events = [(event.action, event.alias, event.to_version) for event in world.registry.history("intents")]
    history = [event.action for event in world.experiments.history("intents-round-1")]
    return ((ended.state, live(world)), ended.decision and ended.decision.replaced, events, history)
