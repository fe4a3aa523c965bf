"""The generation routes with a scripted engine: ids of answers, and log rows for every kind of end."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from graftwork.adapters.access.keys import Role
from graftwork.server.generation import interaction_log
from graftwork.server.generation.interaction_log import EndedAnswer
from tests.adapters.records import Records, outcome
from tests.e2e.server_process import eventually
from tests.server.fakes import ADMIN_KEY, World, make_world
from tests.server.scripted_engine import ASK, CHAT, GatewayHarness, connected_harness


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[GatewayHarness]:
    async with connected_harness(tmp_path, versions=range(2)) as harness:
        yield harness


def events(body: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in body.splitlines() if line.startswith("data: {")]


async def test_an_answers_id_says_who_gave_it(harness: GatewayHarness) -> None:
    answer = (await harness.ask(user="ann")).json()
    said = harness.records.ids.read(answer["id"])
    assert (said.kind, said.adapter, said.unit) == ("chatcmpl", "intents@1", harness.records.ids.unit(user="ann"))
    assert said.at == answer["created"]
    assert said.experiment is None
    body = {"model": "tiny-base", "prompt": "hi"}
    base = (await harness.http.post("/v1/completions", json=body)).json()
    assert (harness.records.ids.read(base["id"]).kind, harness.records.ids.read(base["id"]).adapter) == ("cmpl", None)
    streamed = events((await harness.ask(model="intents@2", stream=True)).text)
    assert len({event["id"] for event in streamed}) == 1
    assert harness.records.ids.read(streamed[0]["id"]).adapter == "intents@2"


async def test_the_user_is_the_unit_or_else_the_session(harness: GatewayHarness) -> None:
    async def unit(headers: dict[str, str] | None = None, **body: Any) -> str | None:
        return harness.records.ids.read((await harness.ask(headers=headers, **body)).json()["id"]).unit

    session = {"x-graftwork-session": "s1"}
    assert await unit() is None
    assert await unit(user="") is None
    assert await unit(session) == harness.records.ids.unit(session="s1")
    assert await unit(metadata={"session": "s1"}) == await unit(session)
    assert await unit(session, user="ann") == await unit(user="ann") == harness.records.ids.unit(user="ann")
    refused = await harness.ask(headers={"x-graftwork-session": "x" * 257})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "x-graftwork-session")


async def test_what_is_logged_of_an_answer(harness: GatewayHarness) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "x"}]},
    ]
    harness.gateway.prompts.chat = lambda _, **__: [104, 105]  # type: ignore[method-assign]
    answer = await harness.ask(
        messages=messages, n=2, temperature=0.5, stop=["z"], user="ann", metadata={"page": "7"}, seed=3,
        safety_identifier="ann-hashed",
    )  # fmt: skip
    (row,) = harness.logged()
    assert row.id == answer.json()["id"]
    assert (row.base, row.model, row.adapter, row.status, row.error) == (
        "tiny-base",
        "intents",
        "intents@1",
        "ok",
        None,
    )
    assert row.prompt == {"messages": messages}
    assert row.sampling == {"max_tokens": 8, "n": 2, "temperature": 0.5, "stop": ["z"], "seed": 3}
    assert [(c.index, c.text, c.finish_reason) for c in row.completions] == [(0, "hi", "stop"), (1, "hi", "stop")]
    assert (row.prompt_tokens, row.completion_tokens) == (2, 4)
    assert (row.user, row.metadata, row.key_id) == ("ann", {"page": "7"}, "local")
    assert row.queue_ms is not None
    assert row.first_token_ms is not None
    assert 0 <= row.first_token_ms <= row.total_ms < 60_000


async def test_how_long_it_queued(harness: GatewayHarness) -> None:
    harness.engine.queued = 0.5
    await harness.ask()
    (row,) = harness.logged()
    assert row.queue_ms is not None
    assert 500 <= row.queue_ms < 10_000


async def test_a_completions_prompts_are_logged_as_they_were_sent(harness: GatewayHarness) -> None:
    for prompt in (["hi", "ho"], [[104, 105], [33]]):
        await harness.http.post("/v1/completions", json={"model": "intents@2", "prompt": prompt, "stream": True})
        row = next(row for row in harness.logged() if row.prompt == {"prompt": prompt})
        assert (row.kind, row.sampling) == ("cmpl", {"stream": True})
        assert row.texts == tuple(text if isinstance(text, str) else bytes(text).decode() for text in prompt)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_breaks_is_logged_as_broken(harness: GatewayHarness, stream: bool) -> None:
    answer = await harness.ask(messages=[{"role": "user", "content": "fail"}], stream=stream)
    assert "it broke" in answer.text
    (row,) = harness.logged()
    assert (row.status, row.error, row.texts) == ("error", "it broke", ("f",))
    assert row.completions[0].finish_reason is None


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_whose_client_leaves_is_logged_as_cancelled(harness: GatewayHarness, stream: bool) -> None:
    body = json.dumps({**ASK, "messages": [{"role": "user", "content": "stall"}], "stream": stream}).encode()
    left, begun = asyncio.Event(), False

    async def receive() -> Any:
        nonlocal begun
        if not begun:
            begun = True
            return {"type": "http.request", "body": body, "more_body": False}
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None: ...

    scope = {
        "type": "http",
        "method": "POST",
        "path": CHAT,
        "raw_path": CHAT.encode(),
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
        "scheme": "http",
    }
    asking = asyncio.ensure_future(harness.world.app(scope, receive, send))
    while harness.engine.link._shared_state.total_open == 0:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert not asking.done()
    left.set()
    await asyncio.wait_for(asyncio.gather(asking, return_exceptions=True), 10)
    (row,) = harness.logged()
    assert (row.status, row.error, row.texts) == ("cancelled", None, ("s",))
    assert harness.engine.link._shared_state.total_open == 0


async def test_what_is_not_stored_is_not_logged_but_can_be_judged(harness: GatewayHarness) -> None:
    unstored = (await harness.ask(store=False)).json()["id"]
    stored = (await harness.ask(store=True)).json()["id"]
    assert [row.id for row in harness.logged()] == [stored]
    assert (
        await harness.http.post("/v1/feedback", json={"interaction_id": unstored, "thumb": "up"})
    ).status_code == 201


async def test_policies_hold_from_one_request_to_the_next(harness: GatewayHarness) -> None:
    async def is_logged(model: str) -> bool:
        id = (await harness.ask(model=model)).json()["id"]
        return id in [row.id for row in harness.logged()]

    assert await is_logged("intents")
    await harness.http.put("/v1/log_policies/adapters/intents", json={"log": False})
    assert not await is_logged("intents@2")
    assert await is_logged("tiny-base")
    await harness.http.put("/v1/log_policies/keys/local", json={"log": False})
    assert not await is_logged("tiny-base")
    await harness.http.delete("/v1/log_policies/keys/local")
    await harness.http.put("/v1/log_policies/adapters/tiny-base", json={"log": False})
    assert not await is_logged("tiny-base")


async def test_refused_requests_are_not_interactions(harness: GatewayHarness) -> None:
    await harness.ask(model="nobody")
    await harness.ask(max_tokens=9999)
    await harness.ask(n=8, messages=[{"role": "user", "content": "stall"}], temperature=9)
    assert harness.logged() == []


async def test_an_arm_that_was_drawn_is_said_everywhere(harness: GatewayHarness) -> None:
    plan = {
        "name": "seven",
        "adapter": "intents",
        "metric": "thumb",
        "arms": [{"version": 1}, {"version": 2, "weight": 1}],
    }
    assert (await harness.http.post("/v1/experiments", json=plan)).status_code == 201
    answer = await harness.ask(user="ann")
    assert (answer.headers["x-graftwork-experiment"], answer.headers["x-graftwork-arm"]) == ("seven", "intents@2")
    assert answer.headers["x-graftwork-adapter"] == "intents@2"
    assert answer.json()["graftwork"] == {"adapter": "intents@2", "experiment": "seven", "arm": "intents@2"}
    said = harness.records.ids.read(answer.json()["id"])
    assert (said.experiment, said.arm, said.probability) == ("seven", "intents@2", 1.0)
    assert said.unit == harness.records.ids.unit(user="ann")
    (row,) = harness.logged(experiment="seven", arm="intents@2")
    assert row.probability == 1.0


async def test_answers_to_ask_users_about_say_so_everywhere(harness: GatewayHarness) -> None:
    """In body, events, header and id, on every route that answers."""
    policy = {"log": True, "ask_feedback": 1}
    assert (await harness.http.put("/v1/log_policies/adapters/intents", json=policy)).status_code == 200
    hey = [{"role": "user", "content": "Hey"}]
    asked = {
        "/v1/chat/completions": {"messages": hey},
        "/v1/completions": {"prompt": "Hey"},
        "/v1/responses": {"input": "Hey"},
        "/v1/messages": {"messages": hey, "max_tokens": 8},
    }
    for path, body in asked.items():
        answer = await harness.http.post(path, json={"model": "intents", **body})
        assert answer.headers["x-graftwork-ask-feedback"] == "true", path
        assert answer.json()["graftwork"] == {"adapter": "intents@1", "ask_feedback": True}
        assert harness.records.ids.read(answer.json()["id"]).asked
        streamed = await harness.http.post(path, json={"model": "intents", "stream": True, **body})
        assert streamed.headers["x-graftwork-ask-feedback"] == "true", path
        first = events(streamed.text)[0]
        first = first.get("response") or first.get("message") or first
        assert first["graftwork"]["ask_feedback"] is True
        assert harness.records.ids.read(first["id"]).asked
        said = {"interaction_id": first["id"], "thumb": "up"}
        assert (await harness.http.post("/v1/feedback", json=said)).json()["asked"] is True
    listed = (await harness.http.get("/v1/feedback", params={"asked": "true"})).json()["data"]
    assert len(listed) == len(asked)
    assert (await harness.http.get("/v1/feedback", params={"asked": "false"})).json()["data"] == []


async def test_only_answers_that_are_logged_are_asked_about(harness: GatewayHarness) -> None:
    async def is_marked(**changes: Any) -> bool:
        answer = await harness.ask(**changes)
        marks = {
            answer.headers.get("x-graftwork-ask-feedback") == "true",
            "ask_feedback" in answer.json()["graftwork"],
            harness.records.ids.read(answer.json()["id"]).asked,
        }
        assert len(marks) == 1
        return marks.pop()

    policies = "/v1/log_policies"
    assert not await is_marked()
    await harness.http.put(f"{policies}/adapters/intents", json={"log": True, "ask_feedback": 1})
    assert await is_marked()
    assert not await is_marked(store=False)
    assert not await is_marked(model="tiny-base")
    await harness.http.put(f"{policies}/keys/local", json={"log": False})
    assert not await is_marked()
    await harness.http.put(f"{policies}/keys/local", json={"log": True, "ask_feedback": 0})
    assert not await is_marked(), "a key's share of 0 is for programs that have no user to ask"


async def test_in_an_experiment_every_arm_asks_the_adapters_share(harness: GatewayHarness) -> None:
    arms = [{"version": 1}, {"version": "base"}]
    plan = {"name": "seven", "adapter": "intents", "metric": "thumb", "arms": arms}
    assert (await harness.http.post("/v1/experiments", json=plan)).status_code == 201
    await harness.http.put("/v1/log_policies/adapters/intents", json={"log": True, "ask_feedback": 1})
    shown = [(await harness.ask(user=f"user-{number}")).json()["graftwork"] for number in range(12)]
    assert {origin["arm"] for origin in shown} == {"intents@1", "base"}
    assert all(origin["ask_feedback"] for origin in shown)


async def test_feedback_waits_for_the_row_that_it_is_about(
    harness: GatewayHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has to wait for the log to gather: what is acknowledged has its row."""
    monkeypatch.setattr(interaction_log, "BATCH_SECONDS", 60)
    await harness.ask()  # the writer is waiting with the old patience
    harness.logged()
    answer = (await harness.ask()).json()
    assert len(harness.records.interactions.find()) == 1
    began = time.monotonic()
    await harness.http.post("/v1/feedback", json={"interaction_id": answer["id"], "thumb": "up"})
    assert time.monotonic() - began < 30
    assert harness.records.interactions.get(answer["id"]).id == answer["id"]


# ------------------------------------------------------------------------------------------------- the queue itself


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = make_world(tmp_path, admin_key=ADMIN_KEY)
    yield world
    world.services.records.log.stop(seconds=0)


@pytest.fixture
def ended(world: World, tmp_path: Path) -> Callable[..., EndedAnswer]:
    records = Records.at(tmp_path / "graftwork.db")

    def make(id: str | None = None, **changes: Any) -> EndedAnswer:
        id = id or records.mint()
        return EndedAnswer(id, "intents", "local", changes.pop("num_bytes", 10), lambda: outcome(id, **changes))

    return make


def count(world: World) -> int:
    return len(list(world.services.records.interactions.each()))


def dropped(world: World) -> float:
    text = world.services.metrics.render().decode()
    return float(re.findall(r"^graftwork_interactions_dropped_total (\S+)", text, re.MULTILINE)[0])


def test_what_waits_is_written_together_and_at_the_end(world: World, ended: Callable[..., EndedAnswer]) -> None:
    log = world.services.records.log
    for _ in range(600):
        log.put(ended())
    assert count(world) == 0
    log.start()
    log.stop()
    assert count(world) == 600
    assert dropped(world) == 0


def test_a_full_queue_drops_and_says_so(
    world: World, ended: Callable[..., EndedAnswer], caplog: pytest.LogCaptureFixture
) -> None:
    log = world.services.records.log
    log.max_waiting = 3
    for _ in range(5):
        log.put(ended())
    log.put(ended(num_bytes=interaction_log.MAX_BYTES))
    assert dropped(world) == 3
    assert "were not logged" in caplog.text
    log.start()
    assert log.flush()
    assert count(world) == 3
    log.put(ended())
    log.stop()
    assert count(world) == 4


def test_large_answers_are_bounded_by_what_they_hold(world: World, ended: Callable[..., EndedAnswer]) -> None:
    log = world.services.records.log
    for _ in range(3):
        log.put(ended(num_bytes=interaction_log.MAX_BYTES // 2))
    assert dropped(world) == 1
    log.start()
    assert log.flush()
    log.put(ended(num_bytes=interaction_log.MAX_BYTES))
    log.stop()
    assert count(world) == 3


def test_one_row_that_cannot_be_written_does_not_cost_the_others(
    world: World, ended: Callable[..., EndedAnswer], caplog: pytest.LogCaptureFixture
) -> None:
    log = world.services.records.log
    good = [ended() for _ in range(3)]
    log.put(good[0])
    log.put(ended(prompt={"messages": object()}))
    log.put(ended(id="chatcmpl-forged"))
    for one in good[1:]:
        log.put(one)
    log.start()
    log.stop()
    assert {row.id for row in world.services.records.interactions.each()} == {one.id for one in good}
    assert dropped(world) == 2
    assert "chatcmpl-forged cannot be logged" in caplog.text


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the database is opened."""
    monkeypatch.setattr("graftwork.adapters.storage.database.BUSY_TIMEOUT_SECONDS", 0.05)
    monkeypatch.setattr(interaction_log, "RETRY_SECONDS", 0.05)


@pytest.mark.usefixtures("impatient")
def test_a_database_that_is_locked_delays_rows_and_nobody_who_asks(
    world: World, ended: Callable[..., EndedAnswer], caplog: pytest.LogCaptureFixture
) -> None:
    log = world.services.records.log
    log.start()
    first = ended()
    blocker = sqlite3.connect(world.home / "graftwork.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    log.put(first)
    assert time.monotonic() - began < 1
    assert not log.wait_until_durable(first.id, seconds=0.5)
    eventually(lambda: "cannot be logged now" in caplog.text, 20, "it is said")
    assert caplog.text.count("cannot be logged now") == 1
    blocker.rollback()
    blocker.close()
    assert log.wait_until_durable(first.id, seconds=30)
    log.stop()
    assert count(world) == 1


@pytest.mark.usefixtures("impatient")
def test_stopping_gives_up_on_a_database_that_stays_locked(world: World, ended: Callable[..., EndedAnswer]) -> None:
    log = world.services.records.log
    log.start()
    one = ended()
    blocker = sqlite3.connect(world.home / "graftwork.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    log.put(one)
    assert not log.wait_until_durable(one.id, seconds=0.5)
    stopping = threading.Thread(target=log.stop, kwargs={"seconds": 0.3})
    stopping.start()
    stopping.join(30)
    assert not stopping.is_alive()
    assert dropped(world) == 1
    blocker.close()


def test_what_comes_after_the_end_is_counted_as_lost(world: World, ended: Callable[..., EndedAnswer]) -> None:
    log = world.services.records.log
    log.start()
    log.put(ended())
    log.stop()
    log.put(ended())
    assert (count(world), dropped(world)) == (1, 1)


@pytest.mark.usefixtures("impatient")
def test_stopping_waits_for_a_database_that_is_locked_for_a_while(
    world: World, ended: Callable[..., EndedAnswer]
) -> None:
    log = world.services.records.log
    log.start()
    blocker = sqlite3.connect(world.home / "graftwork.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    one = ended()
    log.put(one)
    assert not log.wait_until_durable(one.id, seconds=0.5)
    stopping = threading.Thread(target=log.stop, kwargs={"seconds": 60})
    stopping.start()
    stopping.join(0.2)
    assert stopping.is_alive()
    blocker.rollback()
    blocker.close()
    stopping.join(60)
    assert (count(world), dropped(world)) == (1, 0)


def test_nobody_waits_for_what_is_not_on_its_way(world: World) -> None:
    assert world.services.records.log.wait_until_durable("chatcmpl-x", seconds=0)
    assert world.services.records.log.flush(seconds=0)


async def test_each_key_has_its_own_prefixes(harness: GatewayHarness) -> None:
    keys = [harness.world.services.keys.create(name, Role.APP) for name in ("one", "other")]
    for secret, _ in keys:
        await harness.ask(headers={"authorization": f"Bearer {secret}"})
    await harness.ask(headers={"authorization": f"Bearer {keys[0][0]}"}, cache_salt="ann")
    salts = [request.cache_salt for request in harness.engine.asked]
    assert len(set(salts)) == 3
    assert [request.tenant for request in harness.engine.asked] == [keys[i][1].id for i in (0, 1, 0)]
    harness.gateway._shares_prefixes = True
    for secret, _ in keys:
        await harness.ask(headers={"authorization": f"Bearer {secret}"})
    assert len({request.cache_salt for request in harness.engine.asked[3:]}) == 1
    assert all("cache_salt" not in row.sampling for row in harness.logged())
