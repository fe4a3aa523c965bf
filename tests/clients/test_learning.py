"""Learning policies: both clients and the command line against the real routes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from graftwork.adapters.feedback.feedback import SubmittedFeedback
from graftwork.adapters.learning.job import Job
from graftwork.clients import errors
from graftwork.clients.cli.exit_codes import ExitCode
from tests.clients.test_records import ClientsHarness, MakeClient
from tests.clients.test_records import harness as harness  # the fixture

WAIT = "graftwork.clients.cli.learning.learning_policies.time.sleep"


def say(harness: ClientsHarness, count: int) -> None:
    for _ in range(count):
        harness.records.feedback.add(
            SubmittedFeedback(interaction_id=harness.records.mint("intents@1"), thumb="up"), key_id="k"
        )


def begin(harness: ClientsHarness) -> Job:
    begun = harness.world.services.learning.begin("intents")
    assert begun is not None
    return harness.world.services.jobs.get(begun.job)


def end(harness: ClientsHarness, *, fail: bool = False) -> None:
    """What a worker does with the job under way."""
    jobs = harness.world.services.jobs
    claim = jobs.claim("w", "validating_files", seconds=60)
    assert claim is not None
    jobs.mark_validated(claim)
    claim = jobs.claim("w", "queued", seconds=60)
    assert claim is not None
    if fail:
        jobs.fail(claim, code="nan_loss", message="It diverged.")
    else:
        jobs.succeed(claim, "intents@1", metrics={}, trained_tokens=1)
    look(harness)


def look(harness: ClientsHarness) -> None:
    """What the keeper does when a job has ended."""
    rounds = harness.world.services.rounds
    for round_ in rounds.unended():
        rounds.advance(round_.id, fence=lambda connection: None)


def test_both_clients_set_look_and_remove(make_client: MakeClient, harness: ClientsHarness) -> None:
    client = make_client(harness.url)
    assert client.learning_policies.list().data == ()
    policy = client.learning_policies.set(
        "intents", after=2, every_days=None, control_every=1, method="kto", hyperparameters={"rank": 8}
    )
    assert (policy.adapter, policy.after, policy.every_days, policy.method, policy.hyperparameters) == (
        "intents", 2, None, "kto", {"rank": 8},
    )  # fmt: skip
    assert (policy.waits_for, policy.next_is_control, policy.last_round) == ("2 more judgements", True, None)
    say(harness, 2)
    job = begin(harness)
    end(harness, fail=True)
    policy = client.learning_policies.get("intents")
    last = policy.last_round
    assert last is not None
    assert (last.job, last.number, last.control, last.continues, last.state, last.ended, last.reason) == (
        job.id, 1, True, None, "failed", True, "It diverged.",
    )  # fmt: skip
    assert list(client.learning_policies.list()) == [policy]
    assert client.learning_policies.remove("intents") == policy
    for ask in (client.learning_policies.get, client.learning_policies.remove):
        with pytest.raises(errors.NotFoundError):
            ask("intents")
    with pytest.raises(errors.BadRequestError):
        client.learning_policies.set("intents", after=None, every_days=None)


# --- the command line -------------------------------------------------------------------------------------------------


def on_wait(monkeypatch: pytest.MonkeyPatch, *steps: Callable[[], object]) -> None:
    """Do one of these whenever the command waits, and press Ctrl-C in the end."""
    left = iter(steps)

    def wait(_: float) -> None:
        step = next(left, None)
        if step is None:
            raise KeyboardInterrupt
        step()

    monkeypatch.setattr(WAIT, wait)


def test_watch_sets_a_policy_and_tells_what_happens(harness: ClientsHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[Job] = []
    on_wait(
        monkeypatch,
        lambda: say(harness, 2),
        lambda: jobs.append(begin(harness)),
        lambda: end(harness),
        lambda: say(harness, 2),
        lambda: jobs.append(begin(harness)),
        lambda: end(harness, fail=True),
    )
    options = ("--after", 2, "--every", 0, "--control-every", 2, "--epochs", 2, "--method", "kto")
    done = harness.run("train", "intents", "--watch", *options)
    assert done.exit_code == ExitCode.INTERRUPTED
    lines = done.stderr.splitlines()
    assert lines[0] == (
        "intents learns by itself: after 2 new judgements; every 2. round is a control. "
        "Take it away: graftwork train intents --no-watch"
    )
    assert lines[1] == "0 new judgements: waiting for 2 more judgements"
    assert "2 new judgements: a round is due" in lines
    said = "Round 1 of the learning policy of intents: 2 new judgements; it continues intents@1."
    assert lines.count(f"{jobs[0].id}  {said}") == 1
    assert "Round 1 (continues intents@1): intents@1, set aside: it is intents@1 again, which was live already" in lines
    assert "Round 2 (a control): failed: It diverged." in lines
    assert lines[-1].startswith("intents goes on learning by itself.")
    policy = harness.world.services.learning.get("intents")[0]
    assert (policy.after, policy.every_days, policy.control_every, policy.method, policy.hyperparameters) == (
        2, None, 2, "kto", {"n_epochs": 2},
    )  # fmt: skip


def test_watching_again_changes_what_is_said_and_nothing_else(harness: ClientsHarness) -> None:
    first = harness.json("train", "intents", "--watch", "--after", 20, "--control-every", 3, "--detach")
    assert (first["after"], first["every_days"], first["control_every"]) == (20, 7, 3)
    assert harness.json("train", "intents", "--watch", "--detach") == first
    again = harness.json(
        "train", "intents", "--watch", "--from-feedback", "--control-every", 0, "--at-least", 4, "--detach"
    )
    assert (again["after"], again["at_least"], again["control_every"]) == (20, 4, None)
    shown = harness.run("jobs", "policies").stdout
    assert "after 20 new judgements or every 7 days with at least 4" in shown
    assert harness.json("jobs", "policies") == [again]
    say(harness, 20)
    job = begin(harness)
    gone = harness.run("train", "intents", "--no-watch")
    assert "no longer learns by itself" in gone.stdout
    (round_,) = harness.world.services.rounds.find()
    assert (round_.job, f"graftwork rounds undo {round_.id}" in gone.stderr) == (job.id, True)
    assert "No adapter learns by itself" in harness.run("jobs", "policies").stdout
    assert harness.run("train", "intents", "--no-watch").exit_code == ExitCode.NOT_FOUND
    assert harness.run("train", "nobody", "--watch").exit_code == ExitCode.NOT_FOUND


def test_as_json_a_line_for_each_change(harness: ClientsHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    on_wait(
        monkeypatch, lambda: None, lambda: say(harness, 1), lambda: harness.world.services.learning.remove("intents")
    )
    done = harness.run("train", "intents", "--watch", "--json")
    assert done.exit_code == 0, done.stderr
    assert [json.loads(line)["judgements"] for line in done.stdout.splitlines()] == [0, 1]
    assert "somebody took the policy away" in done.stderr


@pytest.mark.parametrize(
    "options",
    [
        ["--watch", "--data", "rows.jsonl"],
        ["--watch", "--local"],
        ["--watch", "--continue", "intents@1"],
        ["--watch", "--seed", "3"],
        ["--watch", "--alias", "candidate"],
        ["--watch", "--epochs", "0.5"],
        ["--no-watch", "--after", "3"],
        ["--no-watch", "--epochs", "3"],
        ["--from-feedback", "--after", "3"],
        ["--watch", "--after", "-1"],
    ],
)
def test_what_does_not_belong_together_is_refused(harness: ClientsHarness, options: list[Any]) -> None:
    done = harness.run("train", "intents", *options)
    assert done.exit_code == ExitCode.USAGE, done.stderr
    assert harness.world.services.learning.all() == []
    assert list(harness.world.services.jobs.find()) == []
