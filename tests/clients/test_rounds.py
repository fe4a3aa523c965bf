"""Rounds and webhooks: both clients, and ``graftwork rounds`` and ``graftwork webhooks``."""

from __future__ import annotations

import pytest

from graftwork.adapters.learning.rounds.round import ENDED_STATES
from graftwork.clients import errors
from graftwork.clients.cli.exit_codes import ExitCode
from graftwork.clients.types.learning.rounds import ENDED
from tests.clients.test_learning import begin, end, say
from tests.clients.test_records import ClientsHarness, MakeClient
from tests.clients.test_records import harness as harness  # the fixture

WAIT = "graftwork.clients.cli.learning.rounds.time.sleep"


def test_both_clients_know_rounds(make_client: MakeClient, harness: ClientsHarness) -> None:
    assert ENDED == ENDED_STATES
    client = make_client(harness.url)
    assert client.rounds.list().data == ()
    client.learning_policies.set("intents", after=9, experiment={"weight": 0.2})
    say(harness, 1)
    plan = client.rounds.plan("intents")
    assert (plan.number, plan.due, plan.judgements) == (1, False, {"thumb": 1})
    assert plan.policy["experiment"]["weight"] == 0.2
    begun = client.rounds.begin("intents")
    assert (client.rounds.get(begun.id), begun.ended) == (begun, False)
    with pytest.raises(errors.ConflictError):
        client.rounds.begin("intents")
    undone = client.rounds.undo(begun.id, reason="a try")
    assert (undone.state, undone.ended, list(client.rounds.list(adapter="intents", state="undone"))) == (
        "undone", True, [undone],
    )  # fmt: skip


def test_both_clients_know_webhooks(make_client: MakeClient, harness: ClientsHarness) -> None:
    client = make_client(harness.url)
    made = client.webhooks.create("https://hooks.example/x", events=["round.promoted"])
    assert (made.secret or "").startswith("whsec_")
    assert [each.id for each in client.webhooks.list()] == [made.id]
    assert client.webhooks.test(made.id).secret is None
    assert [each.type for each in client.webhooks.deliveries(made.id)] == ["webhook.test"]
    assert client.webhooks.delete(made.id).deleted
    with pytest.raises(errors.NotFoundError):
        client.webhooks.test(made.id)


def test_the_commands_of_rounds(harness: ClientsHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "No round has begun" in harness.run("rounds", "list").stdout
    shown = harness.json("train", "intents", "--watch", "--after", 9, "--auto", "experiment", "--detach")
    assert shown["experiment"]["weight"] == 0.5
    say(harness, 2)
    dry = harness.run("rounds", "start", "intents", "--dry-run").stdout
    assert "Round 1 of intents (continues intents@1) would learn from 2 thumb" in dry
    assert "an experiment decides. Nothing was begun." in " ".join(dry.split())
    begun = harness.json("rounds", "start", "intents")
    assert harness.run("rounds", "start", "intents").exit_code == ExitCode.FAILED
    monkeypatch.setattr("graftwork.clients.cli.learning.rounds.POLL_SECONDS", 0)
    waits = iter([lambda: end(harness), lambda: None])

    def wait(_: float) -> None:
        next(waits)()

    monkeypatch.setattr(WAIT, wait)
    watched = harness.run("rounds", "watch", begun["id"])
    assert watched.exit_code == 0
    assert watched.stderr.splitlines()[0].startswith("collecting: 2 new judgements; it continues intents@1")
    assert "set aside: it is intents@1 again" in watched.stderr
    assert "set aside" in harness.run("rounds", "list", "--adapter", "intents").stdout
    whole = harness.run("rounds", "show", begun["id"]).stdout
    for fact in ("1 of intents", begun["job"], "2 thumb", "intents@1"):
        assert fact in whole
    assert harness.run("rounds", "undo", begun["id"]).exit_code == ExitCode.FAILED
    assert harness.run("rounds", "show", "round-0").exit_code == ExitCode.NOT_FOUND


def test_watching_ends_with_ctrl_c_and_the_round_goes_on(
    harness: ClientsHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.run("train", "intents", "--watch", "--after", 1, "--auto", "candidate", "--detach")
    say(harness, 1)
    begin(harness)
    (round_,) = harness.world.services.rounds.find()

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(WAIT, interrupt)
    stopped = harness.run("rounds", "watch", round_.id)
    assert (stopped.exit_code, f"graftwork rounds undo {round_.id}" in stopped.stderr) == (ExitCode.INTERRUPTED, True)
    assert harness.json("rounds", "undo", round_.id, "--reason", "enough")["reason"] == "enough"
    end_failed = harness.run("rounds", "watch", round_.id)
    assert end_failed.exit_code == 0


def test_the_commands_of_webhooks(harness: ClientsHarness) -> None:
    assert "There is no webhook" in harness.run("webhooks", "list").stdout
    made = harness.run("webhooks", "create", "https://hooks.example/x", "--event", "round.promoted")
    assert made.stdout.startswith("whsec_")
    (webhook,) = harness.json("webhooks", "list")
    assert webhook["events"] == ["round.promoted"]
    assert harness.run("webhooks", "test", webhook["id"]).exit_code == 0
    assert "webhook.test" in harness.run("webhooks", "deliveries", webhook["id"]).stdout
    assert "told nothing any more" in harness.run("webhooks", "delete", webhook["id"]).stdout
    assert harness.run("webhooks", "create", "http://127.0.0.1/x").exit_code == ExitCode.FAILED
