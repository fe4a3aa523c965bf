"""An experiment on a real server: users keep their arm over a restart, an arm that starts failing is gone in seconds,
whoever is being answered is answered to the end, and the history tells what happened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from graftwork.clients.client import Client
from graftwork.clients.errors import ConflictError
from graftwork.clients.types.experiments import Experiment
from tests.e2e.conftest import MakeServer
from tests.e2e.peft_folders import SmallAdapters
from tests.e2e.requests import OpenStream
from tests.e2e.server_process import Server, eventually

QUESTION = [{"role": "user", "content": "Where is my card?"}]
USERS = [f"user-{number}" for number in range(60)]


@pytest.fixture(scope="module")
def shop(new_server: MakeServer, small: SmallAdapters, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with two versions of ``shop``."""
    server = new_server().start_and_wait()
    with server.client() as operator:
        for seed in (71, 72):
            operator.adapters.push("shop", small.write(tmp_path_factory.mktemp("shop") / "adapter", seed=seed))
    yield server
    assert server.stop() == 0


def ask(client: openai.OpenAI, user: str) -> tuple[str, str]:
    """(the arm, the answer's id)"""
    answer = client.chat.completions.with_raw_response.create(
        model="shop",
        messages=QUESTION,  # type: ignore[arg-type]
        user=user,
        max_tokens=1,
    )
    arm, version = answer.headers.get("x-graftwork-arm"), answer.headers["x-graftwork-adapter"]
    assert arm in (None, version)
    return version, answer.parse().id


def arms(client: openai.OpenAI) -> dict[str, str]:
    return {user: ask(client, user)[0] for user in USERS}


def ended(operator: Client, name: str) -> Experiment | None:
    found = operator.experiments.get(name)
    return None if found.running else found


def folder_of(server: Server, version: int) -> Path:
    with server.client() as operator:
        digest = operator.adapters.get("shop").versions[version - 1].digest
    return server.home / "artifacts" / digest.removeprefix("sha256:")


def test_an_arm_that_starts_failing_is_rolled_back(shop: Server) -> None:
    with shop.openai() as client, shop.client() as operator:
        started = operator.experiments.start("is-2-better", "shop", [{"version": 1}, {"version": 2}], "thumb")
        before = arms(client)
        assert set(Counter(before.values())) == {"shop@1", "shop@2"}
        assert arms(client) == before
        with pytest.raises(ConflictError):
            operator.adapters.promote("shop", 2)
    shop.stop()
    shop.start_and_wait()

    files = folder_of(shop, 2)
    assert files.is_dir()
    with shop.openai() as client, shop.client() as operator:
        controls = [user for user, arm in before.items() if arm == "shop@1"]
        treated = [user for user, arm in before.items() if arm == "shop@2"]
        assert [ask(client, user)[0] for user in controls] == ["shop@1"] * len(controls)
        stream = OpenStream(client, "shop", user=controls[0], max_tokens=200).wait_until_begun()
        files.rename(files.with_name("gone"))  # as if the disk had lost it
        failures = 0
        for number in range(400):
            ask(client, controls[number % len(controls)])
            try:
                arm, _ = ask(client, treated[number % len(treated)])
            except openai.InternalServerError:
                failures += 1
            else:
                assert arm == "shop@1", "the arm is gone"
                break
        assert 5 < failures < 200
        done = ended(operator, "is-2-better")
        assert done is not None
        # What users met, the history tells, and when.
        assert done.outcome is not None
        assert (done.outcome.decision, done.outcome.arm, done.outcome.actor) == ("guardrail", "shop@2", "keeper")
        assert "error_rate" in done.outcome.reason
        assert [event.action for event in done.history] == ["stop", "rollback", "start"]
        rails = [rail for rail in done.outcome.reading.guardrails if rail.breached]  # type: ignore[union-attr]
        assert [(rail.arm, rail.metric) for rail in rails] == [("shop@2", "error_rate")]
        assert done.started_at == started.started_at
        assert [ask(client, user)[0] for user in (*treated[:3], *controls[:3])] == ["shop@1"] * 6
        assert stream.wait_until_ended(120).finish_reason == "length"
    files.with_name("gone").rename(files)


def test_from_evidence_to_rollback_it_takes_seconds_and_answers_go_on(shop: Server) -> None:
    """The evidence is what users say; a shadow arm looks on."""
    with shop.openai() as client, shop.client() as operator:
        operator.experiments.start(
            "do-users-like-it",
            "shop",
            [{"version": 1}, {"version": 2, "weight": 0.5}, {"version": "base", "shadow": 1.0, "name": "mirror"}],
            "thumb",
            guardrails=[{"metric": "correction_rate", "limit": 0.3}],
            window_seconds=5,
        )
        stream: OpenStream | None = None
        for user in USERS:
            arm, id = ask(client, user)
            if arm == "shop@2":
                operator.feedback.send(id, correction="card_arrival")
                stream = stream or OpenStream(client, "shop", user=user, max_tokens=6000).wait_until_begun()
        done = eventually(lambda: ended(operator, "do-users-like-it"), 60, "the arm is rolled back")
        (said, *_) = operator.feedback.list(experiment="do-users-like-it")
        (stopped, *_) = done.history
        # Its window and the moment for rows that are under way are in it.
        assert (stopped.at - said.at).total_seconds() < 30
        assert done.outcome is not None
        assert (done.outcome.decision, done.outcome.arm) == ("guardrail", "shop@2")
        assert set(arms(client).values()) == {"shop@1"}
        # Who was being answered by it still is.
        assert stream is not None
        assert (stream.adapter, stream.ended_at) == ("shop@2", None)
        so_far = stream.num_chunks
        eventually(lambda: stream.num_chunks > so_far + 30, 120, "the answer goes on")
        stream.leave()
        assert stream.error is None
        (mirror,) = done.outcome.reading.shadows  # type: ignore[union-attr]
        assert mirror.answered > 0
        assert mirror.errors == 0
        assert operator.adapters.get("shop").aliases["live"] == 1
        operator.adapters.promote("shop", 2)
        assert ask(client, USERS[0])[0] == "shop@2"
