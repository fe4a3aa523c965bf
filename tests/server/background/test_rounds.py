"""Learning policies: routes, the keeper's duty with two keepers, and events."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from graftwork.adapters.access.keys import Role
from graftwork.adapters.errors import Unavailable
from graftwork.adapters.experiments.store import Experiments
from graftwork.adapters.feedback.feedback import SubmittedFeedback
from graftwork.adapters.learning.job import Job, NewJob
from graftwork.adapters.learning.jobs import Jobs
from graftwork.adapters.learning.rounds.policies import LearningPolicies
from graftwork.adapters.learning.rounds.rounds import Rounds
from graftwork.adapters.registry import Registry
from graftwork.adapters.storage.database import Database
from graftwork.adapters.storage.leases import Lease, Leases
from graftwork.server.background.keeper import Keeper
from graftwork.server.background.rounds import RoundScheduler
from tests.adapters.records import Records
from tests.server.fakes import ADMIN_KEY, World, adapter_files, form, make_world
from tests.server.http_errors import HERE, error

POLICY = "/v1/adapters/intents/learning_policy"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


@pytest.fixture
def client(world: World) -> Iterator[TestClient]:
    with TestClient(world.app, base_url="http://127.0.0.1:8000", client=HERE) as client:
        client.post("/v1/adapters/intents/versions", files=form(adapter_files(0)))
        yield client


@pytest.fixture
def say(world: World) -> Iterator[Callable[[int], None]]:
    records = Records.at(world.home / "graftwork.db")

    def say(count: int) -> None:
        for _ in range(count):
            records.feedback.add(SubmittedFeedback(interaction_id=records.mint("intents@1"), thumb="up"), key_id="k")

    yield say
    records.database.close()


def duty(world: World) -> tuple[RoundScheduler, Database]:
    """As another server on the same database has it."""
    database = Database(world.home / "graftwork.db")
    registry, jobs = Registry(database), Jobs(database)
    return scheduler(database, registry, jobs, world.services.base.id, world.services.base.digest), database


def scheduler(database: Database, registry: Registry, jobs: Jobs, base_id: str, base_digest: str) -> RoundScheduler:
    policies = LearningPolicies(database, registry, jobs, base_id=base_id)
    rounds = Rounds(database, registry, jobs, Experiments(database, registry), base_digest=base_digest)
    return RoundScheduler(policies, rounds, Leases(database))


def end(world: World, client: TestClient, gates: dict[str, Any] | None) -> None:
    """What a worker does: the version is registered, the job ends."""
    jobs = world.services.jobs
    claim = jobs.claim("w", "validating_files", seconds=60)
    assert claim is not None
    jobs.mark_validated(claim)
    claim = jobs.claim("w", "queued", seconds=60)
    assert claim is not None
    metadata = json.dumps({} if gates is None else {"gates": gates})
    pushed = client.post(
        "/v1/adapters/intents/versions", files=form(adapter_files(1)), data={"metadata": metadata}
    ).json()
    jobs.succeed(claim, pushed["id"], metrics={}, trained_tokens=1)


# --- the routes -------------------------------------------------------------------------------------------------------


def test_a_policy_is_set_shown_and_removed(client: TestClient, say: Callable[[int], None]) -> None:
    assert error(client.get(POLICY), 404)["code"] == "policy_not_found"
    assert error(client.delete(POLICY), 404)["code"] == "policy_not_found"
    say(4)
    policy = client.put(POLICY, json={"after": 5, "control_every": 2, "hyperparameters": {"rank": 8}}).json()
    assert policy.pop("created_at") == policy.pop("updated_at") > 1_700_000_000
    assert policy.pop("waits_for").startswith("1 more judgement, or ")
    assert policy == {
        "object": "learning_policy",
        "adapter": "intents",
        "after": 5,
        "every_days": 7.0,
        "at_least": 10,
        "control_every": 2,
        "method": "auto",
        "hyperparameters": {"rank": 8},
        "experiment": None,
        "actor": "local",
        "judgements": 4,
        "due": False,
        "rounds": 0,
        "next_is_control": False,
        "last_round": None,
    }
    say(1)
    shown = client.get(POLICY).json()
    assert (shown["due"], shown["waits_for"]) == (True, None)
    assert client.get("/v1/learning_policies").json()["data"] == [shown]
    assert client.put(POLICY, json={"after": None, "method": "supervised"}).json()["after"] is None
    assert client.delete(POLICY).json()["method"] == "supervised"
    assert client.get("/v1/learning_policies").json() == {"object": "list", "data": [], "has_more": False}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"after": 0}, "after"),
        ({"after": 1.5}, "after"),
        ({"after": None, "every_days": None}, "after"),
        ({"every_days": 0}, "every_days"),
        ({"at_least": None}, "at_least"),
        ({"control_every": -1}, "control_every"),
        ({"method": "ppo"}, "method"),
        ({"method": "grpo"}, "hyperparameters.rewards"),
        ({"hyperparameters": {"epochs": 3}}, "hyperparameters.epochs"),
        ({"afterr": 3}, "afterr"),
    ],
)
def test_what_can_be_no_policy_is_refused(client: TestClient, body: dict[str, Any], param: str) -> None:
    assert error(client.put(POLICY, json=body), 400)["param"] == param
    assert client.get("/v1/learning_policies").json()["data"] == []


def test_of_an_adapter_that_is_none(client: TestClient) -> None:
    for ask in (client.get, client.put, client.delete):
        assert error(ask("/v1/adapters/nobody/learning_policy"), 404)["code"] == "adapter_not_found"


def test_operators_only(tmp_path: Path) -> None:
    world = make_world(tmp_path, admin_key=ADMIN_KEY, open_to_loopback=False)
    secret, _ = world.keys.create("shop", Role.APP)
    with TestClient(world.app, base_url="http://127.0.0.1:8000", client=HERE) as client:
        client.headers["authorization"] = f"Bearer {secret}"
        for method, path in (("GET", "/v1/learning_policies"), ("GET", POLICY), ("PUT", POLICY), ("DELETE", POLICY)):
            assert error(client.request(method, path), 403)["code"] == "insufficient_role"


# --- the duty ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def lease(world: World) -> Lease:
    database = Database(world.home / "graftwork.db")
    lease = Leases(database).acquire("keeper", "me", seconds=600)
    database.close()
    assert lease is not None
    return lease


def test_a_round_begins_ends_and_is_told(
    world: World,
    client: TestClient,
    say: Callable[[int], None],
    lease: Lease,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    loop, database = duty(world)
    client.put(POLICY, json={"after": 3})
    say(2)
    loop.run(lease)
    assert client.get("/v1/fine_tuning/jobs").json()["data"] == []
    say(1)
    loop.run(lease)
    loop.run(lease)
    (job,) = client.get("/v1/fine_tuning/jobs").json()["data"]
    assert (job["training_file"], job["model"], job["graftwork"]["parent"], job["graftwork"]["created_by"]) == (
        "feedback", "intents@1", "intents@1", "keeper",
    )  # fmt: skip
    assert f"round 1 of intents began as {job['id']}: 3 new judgements; it continues intents@1" in caplog.text
    metrics = client.get("/metrics").text
    assert 'graftwork_learning_judgements{adapter="intents"} 3.0' in metrics
    assert 'graftwork_learning_rounds{adapter="intents",state="collecting"} 1.0' in metrics
    end(world, client, None)
    loop.run(lease)
    loop.run(lease)
    assert caplog.text.count("round 1 of intents, awaiting_decision") == 1
    last = client.get(POLICY).json()["last_round"]
    assert client.get(f"/v1/rounds/{last['id']}").json() == last == client.get("/v1/rounds").json()["data"][0]
    assert last.pop("created_at") < last.pop("updated_at")
    assert last.pop("id").startswith("round-")
    assert last.pop("policy")["after"] == 3
    assert last == {
        "object": "round",
        "adapter": "intents",
        "number": 1,
        "state": "awaiting_decision",
        "reason": "it was not held against gates; nobody has promoted it yet",
        "control": False,
        "continues": "intents@1",
        "live": "intents@1",
        "judgements": {"thumb": 3},
        "job": job["id"],
        "data_digest": None,
        "rows": None,
        "candidate": "intents@2",
        "gates": None,
        "experiment": None,
        "decision": None,
        "created_by": "keeper",
        "ended_at": None,
    }
    metrics = client.get("/metrics").text
    assert 'state="collecting"' not in metrics
    assert 'graftwork_learning_rounds{adapter="intents",state="awaiting_decision"} 1.0' in metrics
    client.delete(POLICY)
    assert "graftwork_learning_rounds{adapter" not in client.get("/metrics").text
    database.close()


@pytest.mark.parametrize(
    ("gates", "outcome", "words"),
    [
        ({"outcome": "pass", "passed": True}, "pass", "gates passed"),
        (
            {"outcome": "refuse", "passed": False, "refusals": ["general loss rose by 5 %"]},
            "refuse",
            "gates refused it: general loss rose by 5 %",
        ),
        (
            {"outcome": "inconclusive", "passed": False, "doubts": ["12 rows"]},
            "inconclusive",
            "gates cannot say, an experiment can: 12 rows",
        ),
        ({"passed": True, "refusals": []}, "pass", "gates passed"),  # as 0.1.0 wrote it
        ({"passed": False, "refusals": ["too few"]}, "refuse", "gates refused it: too few"),
    ],
)
def test_what_the_gates_said_is_told(
    world: World,
    client: TestClient,
    say: Callable[[int], None],
    lease: Lease,
    caplog: pytest.LogCaptureFixture,
    gates: dict[str, Any],
    outcome: str,
    words: str,
) -> None:
    caplog.set_level(logging.INFO)
    loop, database = duty(world)
    client.put(POLICY, json={"after": 1})
    say(1)
    loop.run(lease)
    end(world, client, gates)
    loop.run(lease)
    assert words in caplog.text
    last = client.get(POLICY).json()["last_round"]
    said = {name: gates.get(name, []) for name in ("refusals", "doubts")}
    assert last["gates"] == {"outcome": outcome, **said}
    assert last["state"] == ("set_aside" if outcome == "refuse" else "awaiting_decision")
    database.close()


def test_one_that_cannot_begin_does_not_hold_up_the_others(
    world: World, client: TestClient, lease: Lease, say: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, database = duty(world)
    client.post("/v1/adapters/broken/versions", files=form(adapter_files(5)))
    records = Records.at(world.home / "graftwork.db")
    records.feedback.add(SubmittedFeedback(interaction_id=records.mint("broken@1"), thumb="up"), key_id="k")
    records.database.close()
    say(1)
    client.put("/v1/adapters/broken/learning_policy", json={"after": 1})
    client.put(POLICY, json={"after": 1})
    submit = Jobs.submit

    def refuse(self: Jobs, new: NewJob, **more: Any) -> tuple[Job, bool]:
        if new.name == "broken":
            raise Unavailable("not today")
        return submit(self, new, **more)

    monkeypatch.setattr(Jobs, "submit", refuse)
    with pytest.raises(ExceptionGroup, match="could not be carried on") as failed:
        loop.run(lease)
    assert "not today" in str(failed.value.exceptions)
    assert [job.name for job in world.services.jobs.find()] == ["intents"]
    database.close()


# --- two keepers, and one of them dies --------------------------------------------------------------------------------


def test_two_keepers_begin_one_round(world: World, client: TestClient, say: Callable[[int], None]) -> None:
    client.put(POLICY, json={"after": 3})
    keepers, databases = [], []
    for _ in range(2):
        loop, database = duty(world)
        keeper = Keeper(Leases(database), seconds=3)
        keeper.add_duty("learning", loop.run, every=0.02)
        keepers.append(keeper)
        databases.append(database)
    for keeper in keepers:
        keeper.start()
    try:
        for _ in range(3):
            time.sleep(0.1)
            say(1)
        deadline = time.monotonic() + 30
        while not world.services.jobs.find():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        say(10)
        time.sleep(0.3)
        assert len(world.services.jobs.find()) == 1
    finally:
        for keeper in keepers:
            keeper.stop()
        for database in databases:
            database.close()


LOOKING = """
import sys
from tests.server.background.test_rounds import look
look(*sys.argv[1:])
"""


def look(home: str, base_id: str, base_digest: str) -> None:
    """A keeper of its own process, until it is killed; says so when it has looked."""
    database = Database(Path(home) / "graftwork.db")
    loop = scheduler(database, Registry(database), Jobs(database), base_id, base_digest)
    lease = Leases(database).acquire("keeper", "killed", seconds=1)
    assert lease is not None
    while True:
        loop.run(lease)
        print("looked", flush=True)


def test_killed_after_it_began_a_round_the_next_keeper_begins_no_other(
    world: World, client: TestClient, say: Callable[[int], None]
) -> None:
    client.put(POLICY, json={"after": 1})
    say(1)
    process = subprocess.Popen(
        [sys.executable, "-c", LOOKING, str(world.home), world.services.base.id, world.services.base.digest],
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"looked\n"
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    (job,) = world.services.jobs.find()
    loop, database = duty(world)
    keeper = Keeper(Leases(database), seconds=3)
    looks: list[int] = []
    keeper.add_duty("learning", lambda lease: (loop.run(lease), looks.append(1)), every=0.02)
    keeper.start()
    try:
        deadline = time.monotonic() + 30
        while len(looks) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        keeper.stop()
        database.close()
    assert [found.id for found in world.services.jobs.find()] == [job.id]


# --- the routes of rounds ---------------------------------------------------------------------------------------------


def test_a_round_is_planned_begun_and_undone(client: TestClient, say: Callable[[int], None]) -> None:
    assert error(client.get("/v1/adapters/intents/next_round"), 404)["code"] == "policy_not_found"
    assert error(client.post("/v1/rounds", json={"adapter": "intents"}), 400)["code"] == "policy_not_found"
    assert error(client.post("/v1/rounds", json={"adapter": "nobody"}), 400)["param"] == "adapter"
    policy = client.put(POLICY, json={"after": 9, "experiment": True}).json()
    assert policy["experiment"]["weight"] == 0.5
    say(2)
    plan = client.get("/v1/adapters/intents/next_round").json()
    assert (plan["number"], plan["continues"], plan["judgements"], plan["due"], plan["policy"]["experiment"]) == (
        1, "intents@1", {"thumb": 2}, False, policy["experiment"],
    )  # fmt: skip
    assert client.get("/v1/rounds").json()["data"] == []
    begun = client.post("/v1/rounds", json={"adapter": "intents"})
    assert (begun.status_code, begun.json()["state"]) == (201, "collecting")
    assert error(client.post("/v1/rounds", json={"adapter": "intents"}), 409)["code"] == "round_under_way"
    id = begun.json()["id"]
    undone = client.post(f"/v1/rounds/{id}/undo", json={"reason": "a try"}).json()
    assert (undone["state"], undone["reason"], undone["decision"]["by"]) == ("undone", "a try", "local")
    assert error(client.post(f"/v1/rounds/{id}/undo"), 409)["code"] == "round_ended"
    assert error(client.get("/v1/rounds/round-0"), 404)["code"] == "round_not_found"
    assert [one["id"] for one in client.get("/v1/rounds?state=undone&adapter=intents").json()["data"]] == [id]


@pytest.mark.parametrize(
    ("experiment", "param"),
    [
        ("yes", "experiment"),
        ({"metric": "happiness"}, "experiment.metric"),
        ({"weight": 2}, "experiment.weight"),
        ({"days": -1}, "experiment.days"),
        ({"guardrails": [{"metric": "latency", "limit": 1}]}, "experiment.guardrails[0]"),
        ({"arms": []}, "experiment.arms"),
    ],
)
def test_settings_that_no_experiment_can_have(client: TestClient, experiment: Any, param: str) -> None:
    assert param in error(client.put(POLICY, json={"experiment": experiment}), 400)["param"]
    assert client.get("/v1/learning_policies").json()["data"] == []


def test_what_a_policy_answers_can_be_sent_again(client: TestClient) -> None:
    given = {"metric": {"name": "latency", "over": 2}, "weight": 0.1, "max_units": 500, "days": 3}
    shown = client.put(POLICY, json={"experiment": given}).json()["experiment"]
    assert shown["metric"] == {"name": "latency", "over": 2.0, "range": None, "goal": "down"}
    assert client.put(POLICY, json={"experiment": shown}).json()["experiment"] == shown
    assert client.put(POLICY, json={"experiment": False}).json()["experiment"] is None
