"""Batches carried on: answers, errors, cancellation, expiry, keys, users first, and nothing lost or done twice."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from graftwork.adapters.access.keys import Role
from graftwork.adapters.access.limits import Limits
from graftwork.adapters.access.principal import Principal
from graftwork.adapters.access.usage import Usage
from graftwork.adapters.batches.batch import Batch
from graftwork.adapters.batches.batches import Batches
from graftwork.adapters.feedback.interactions import InteractionFilter
from graftwork.adapters.learning.files import Files
from graftwork.server.generation.batches import input as batch_input
from graftwork.server.generation.batches import run, runner
from tests.server.batches_harness import NUM_OPEN, NUM_SEATS, BatchesHarness, line, said
from tests.server.fakes import adapter_files, form
from tests.server.scripted_engine import ASK, CHAT


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(run, "RETRY_SECONDS", 0.02)


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[BatchesHarness]:
    harness = BatchesHarness(tmp_path)
    for seed in range(2):
        await harness.gateway.http.post("/v1/adapters/intents/versions", files=form(adapter_files(seed)))
    yield harness
    await harness.close()


# ------------------------------------------------------------------------------------------------------- the answers


async def test_every_request_is_answered_as_if_it_came_alone(harness: BatchesHarness) -> None:
    lines = [
        line("a", "hello"),
        line("b", "you", model="intents", user="ann", n=2),
        b"",
        line("c", model="nobody"),
        line("d", temperature=9),
        line("e", "fail"),
        line("f", metadata={"session": "s1"}, model="intents@2", store=False),
    ]
    batch, results = await harness.run(lines)
    assert (batch.status, batch.total, batch.completed, batch.failed) == ("completed", 6, 3, 3)
    assert (said(results["a"]), said(results["b"])) == ("hello", "you")
    answer = results["b"]["response"]["body"]
    assert (answer["object"], answer["graftwork"], len(answer["choices"])) == (
        "chat.completion", {"adapter": "intents@1"}, 2,
    )  # fmt: skip
    assert results["a"]["response"]["request_id"].startswith("req_")
    refused = {name: results[name]["response"] for name in "cde"}
    assert [answer["status_code"] for answer in refused.values()] == [404, 400, 500]
    assert [answer["body"]["error"]["code"] for answer in refused.values()] == [
        "model_not_found", "invalid_value", "internal_error",
    ]  # fmt: skip
    assert refused["d"]["body"]["error"]["param"] == "temperature"
    # Logged as users' requests are, under the key that made the batch.
    rows = {row.id: row for row in harness.gateway.logged()}
    assert {row.key_id for row in rows.values()} == {"local"}
    assert results["a"]["response"]["body"]["id"] in rows
    assert rows[answer["id"]].user == "ann"
    assert results["f"]["response"]["body"]["id"] not in rows, "store: false"
    rendered = harness.services.metrics.render().decode()
    assert 'graftwork_batch_results_total{outcome="completed"} 3.0' in rendered
    assert 'graftwork_batch_results_total{outcome="failed"} 3.0' in rendered
    assert 'graftwork_completion_tokens_total{adapter="intents"}' in rendered
    await harness.until(lambda: not harness.services.batches.answered_lines(batch.id))


async def test_completions_are_answered_too(harness: BatchesHarness) -> None:
    def asked(id: str, **body: Any) -> dict[str, Any]:
        body = {"model": "tiny-base", "prompt": "hi", **body}
        return {"custom_id": id, "method": "POST", "url": "/v1/completions", "body": body}

    batch, results = await harness.run(
        [asked("one"), asked("many", prompt=["a", "b", "c"]), asked("too many", prompt=["x"] * (NUM_OPEN + 1))],
        endpoint="/v1/completions",
    )
    assert (batch.completed, batch.failed) == (2, 1)
    assert [choice["text"] for choice in results["many"]["response"]["body"]["choices"]] == ["a", "b", "c"]
    assert "Send several" in results["too many"]["response"]["body"]["error"]["message"]


async def test_responses_are_answered_too(harness: BatchesHarness) -> None:
    def asked(id: str, **body: Any) -> dict[str, Any]:
        body = {"model": "intents", "input": "hi", **body}
        return {"custom_id": id, "method": "POST", "url": "/v1/responses", "body": body}

    lines = [asked("one"), asked("history", previous_response_id="resp-x"), asked("odd", max_output_tokens=0)]
    batch, results = await harness.run(lines, endpoint="/v1/responses")
    assert (batch.completed, batch.failed) == (1, 2)
    answer = results["one"]["response"]["body"]
    assert (answer["object"], answer["output"][0]["content"][0]["text"]) == ("response", "hi")
    assert results["history"]["response"]["body"]["error"]["param"] == "previous_response_id"


async def test_embeddings_are_answered_too(harness: BatchesHarness) -> None:
    def asked(id: str, **body: Any) -> dict[str, Any]:
        body = {"model": "tiny-base", "input": "hi", **body}
        return {"custom_id": id, "method": "POST", "url": "/v1/embeddings", "body": body}

    batch, results = await harness.run(
        [asked("one"), asked("many", input=["a", "b", "c"]), asked("odd", dimensions=3)], endpoint="/v1/embeddings"
    )
    assert (batch.completed, batch.failed) == (2, 1)
    assert [len(results[name]["response"]["body"]["data"]) for name in ("one", "many")] == [1, 3]
    assert results["odd"]["response"]["body"]["error"]["param"] == "dimensions"


async def test_experiments_draw_arms_for_them(harness: BatchesHarness) -> None:
    plan = {
        "name": "seven",
        "adapter": "intents",
        "metric": "thumb",
        "arms": [{"version": 1}, {"version": 2, "weight": 1}],
    }
    assert (await harness.gateway.http.post("/v1/experiments", json=plan)).status_code == 201
    _, results = await harness.run([line("a", model="intents", user="ann")])
    answer = results["a"]["response"]["body"]
    assert answer["graftwork"] == {"adapter": "intents@2", "experiment": "seven", "arm": "intents@2"}
    drawn = harness.gateway.records.ids.read(answer["id"])
    assert (drawn.arm, drawn.unit) == ("intents@2", harness.gateway.records.ids.unit(user="ann"))


async def test_progress_shows_and_small_batches_do_not_wait_for_large_ones(harness: BatchesHarness) -> None:
    large = harness.create([line(str(number)) for number in range(1000)])
    harness.runner.start()
    await harness.until(lambda: 0 < harness.now(large).completed < 300)
    small = harness.create([line("a"), line("b")])
    await harness.ended(small)
    assert harness.now(large).completed < 1000
    assert (await harness.ended(large)).completed == 1000
    assert len(harness.results(harness.now(large))) == 1000


# ------------------------------------------------------------------------------------------------------- a bad input

BAD_INPUTS: list[tuple[str, list[Any], str, int | None, str | None]] = [
    ("no JSON", [line("a"), b"oops"], "invalid_json_line", 2, None),
    ("half a line", [b'{"custom_id": "a", "method": "POST"'], "invalid_json_line", 1, None),
    ("a list", [[1]], "invalid_type", 1, None),
    ("no UTF-8", [b'{"custom_id": "\xff"}'], "invalid_json_line", 1, None),
    ("half a surrogate", [b'{"custom_id": "\\ud800"}'], "invalid_json_line", 1, None),
    ("nested without end", [b'{"body": ' + b"[" * 100_000], "invalid_json_line", 1, None),
    ("a NUL", [line("a\0")], "invalid_value", 1, "custom_id"),
    ("no id", [{k: v for k, v in line("a").items() if k != "custom_id"}], "missing_required_parameter", 1, "custom_id"),
    ("an empty id", [line("")], "invalid_value", 1, "custom_id"),
    ("an id of digits", [{**line("a"), "custom_id": 7}], "invalid_type", 1, "custom_id"),
    ("an id without end", [line("x" * 300)], "invalid_value", 1, "custom_id"),
    ("an id twice", [line("a"), b"", line("b"), line("a")], "duplicate_custom_id", 4, "custom_id"),
    ("another method", [{**line("a"), "method": "GET"}], "invalid_value", 1, "method"),
    ("no method", [{k: v for k, v in line("a").items() if k != "method"}], "missing_required_parameter", 1, "method"),
    ("another endpoint", [{**line("a"), "url": "/v1/completions"}], "invalid_url", 1, "url"),
    ("a whole address", [{**line("a"), "url": f"http://127.0.0.1{CHAT}"}], "invalid_url", 1, "url"),
    ("no body", [{**line("a"), "body": None}], "invalid_type", 1, "body"),
    ("a text for a body", [{**line("a"), "body": "hi"}], "invalid_type", 1, "body"),
    ("a stream", [line("a"), line("b", stream=True)], "unsupported_parameter", 2, "body.stream"),
    ("a field too many", [{**line("a"), "headers": {}}], "unknown_parameter", 1, "headers"),
    ("nothing but a byte order mark", [b"\xef\xbb\xbf", b"", b" "], "empty_file", None, None),
]


@pytest.mark.parametrize(
    ("lines", "code", "at", "param"), [bad[1:] for bad in BAD_INPUTS], ids=[b[0] for b in BAD_INPUTS]
)
async def test_a_broken_file_fails_the_batch_before_anything_is_asked(
    harness: BatchesHarness, lines: list[Any], code: str, at: int | None, param: str | None
) -> None:
    batch, results = await harness.run(lines)
    assert (batch.status, batch.total, results, harness.asked) == ("failed", 0, {}, [])
    assert batch.failed_at is not None
    (error,) = batch.errors
    assert (error.code, error.line, error.param) == (code, at, param), error
    assert len(error.message) > 10


async def test_all_wrong_lines_are_told_up_to_a_hundred(harness: BatchesHarness) -> None:
    batch, _ = await harness.run([line("a"), *[b"oops"] * 150])
    assert [error.line for error in batch.errors] == list(range(2, 102))


async def test_files_have_bounds(harness: BatchesHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_input, "MAX_REQUESTS", 3)
    monkeypatch.setattr(batch_input, "MAX_LINE_BYTES", 1000)
    many, _ = await harness.run([line(str(number)) for number in range(4)])
    assert [(error.code, error.line) for error in many.errors] == [("too_many_requests", None)]
    long = await harness.ended(harness.create([line("a"), line("b", "x" * 5000), line("c")]))
    assert [(error.code, error.line) for error in long.errors] == [("too_large", 2)]
    assert (await harness.ended(harness.create([line("a", "x" * 50)]))).status == "completed"


async def test_a_file_that_is_gone_fails_the_batch(harness: BatchesHarness) -> None:
    batch = harness.create([line("a")])
    harness.services.files.delete(batch.input_file)
    harness.runner.start()
    assert [error.code for error in (await harness.ended(batch)).errors] == ["file_not_found"]


# -------------------------------------------------------------------------------------------- stopped before its end


async def test_a_cancelled_batch_keeps_its_answers_and_stops(harness: BatchesHarness) -> None:
    batch = harness.create([line("quick"), *[line(str(number), "stall") for number in range(9)]])
    harness.runner.start()
    await harness.until(lambda: harness.now(batch).completed == 1)
    harness.services.batches.cancel(batch.id)
    batch = await harness.ended(batch)
    assert (batch.status, batch.completed, batch.failed) == ("cancelled", 1, 0)
    results = harness.results(batch)
    assert said(results["quick"]) == "hi"
    assert results["3"]["response"] is None
    assert {results[str(number)]["error"]["code"] for number in range(9)} == {"batch_cancelled"}
    assert harness.gateway.engine.link.num_open() == 0
    assert len(harness.gateway.logged()) == 1, "what nobody answered is not logged"


async def test_a_batch_expires(harness: BatchesHarness) -> None:
    batch = harness.create([line("quick"), line("slow", "stall")])
    harness.runner.start()
    await harness.until(lambda: harness.now(batch).completed == 1)
    set_expiry(harness, batch)
    batch = await harness.ended(batch)
    assert (batch.status, batch.expired_at is not None) == ("expired", True)
    assert harness.results(batch)["slow"]["error"]["code"] == "batch_expired"


def set_expiry(harness: BatchesHarness, batch: Batch) -> None:
    with harness.database.write() as connection:
        past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat(timespec="microseconds").replace("+00:00", "Z")
        connection.execute(text("UPDATE batches SET expires_at = :past WHERE id = :id"), {"past": past, "id": batch.id})


async def test_what_is_complete_does_not_expire(harness: BatchesHarness) -> None:
    batch = harness.create([line("a")])
    harness.services.batches.begin(batch.id, 1, fence=lambda _: None)
    harness.hold = True
    harness.runner.start()
    await harness.until(lambda: harness.asked)
    harness.release()
    await harness.until(lambda: harness.now(batch).completed)
    set_expiry(harness, batch) if not harness.now(batch).ended else None
    assert (await harness.ended(batch)).status == "completed"


async def test_the_batch_of_a_revoked_key_fails(tmp_path: Path) -> None:
    harness = BatchesHarness(tmp_path, admin_key="the-first-key-of-all")
    try:
        _, key = harness.services.keys.create("shop", Role.APP)
        who = Principal("shop", Role.APP, key.id)
        batch = harness.create([line("quick"), line("slow", "stall"), line("never")], who)
        harness.runner.start()
        await harness.until(lambda: harness.now(batch).completed >= 1)
        harness.services.keys.revoke(key.id)
        batch = await harness.ended(batch)
        assert (batch.status, batch.errors[0].code) == ("failed", "invalid_api_key")
        results = harness.results(batch)
        assert said(results["quick"]) == "hi"
        assert results["slow"]["error"]["code"] == "invalid_api_key"
        later = harness.create([line("a")], who)
        assert (await harness.ended(later)).status == "failed"
        assert harness.results(harness.now(later))["a"]["response"] is None
    finally:
        await harness.close()


async def test_without_a_key_nothing_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harness = BatchesHarness(tmp_path, admin_key="the-first-key-of-all")
    try:
        _, key = harness.services.keys.create("shop", Role.APP, scope=frozenset({"intents"}))
        batch = harness.create([line("a")], Principal("shop", Role.APP, key.id, key.scope))
        harness.services.keys.revoke(key.id)
        monkeypatch.setattr(run.BatchRun, "look", lambda *_: None)  # what looks meanwhile comes too late
        harness.runner.start()
        await harness.ended(batch)
        assert harness.asked == []
    finally:
        await harness.close()


# -------------------------------------------------------------------------------------------------------- users first


async def test_batches_take_no_users_place_and_give_way(harness: BatchesHarness) -> None:
    harness.hold = True
    batch = harness.create([line(str(number)) for number in range(6)])
    harness.runner.start()
    await harness.until(lambda: len(harness.asked) == 2)  # half the seats
    await asyncio.sleep(0.2)
    assert harness.asked == ["hi"] * 2
    asking = [asyncio.ensure_future(harness.gateway.http.post(CHAT, json=ASK)) for _ in range(8)]
    # As many users as the queue takes are accepted while requests of a batch are under way, and these make room.
    await harness.until(lambda: len(harness.asked) == 10)
    await harness.until(lambda: harness.gateway.engine.link.num_background() == 0)
    assert (await harness.gateway.http.post(CHAT, json=ASK)).status_code == 429
    assert harness.now(batch).completed == 0
    harness.release()
    assert {(await answer).status_code for answer in asking} == {200}
    batch = await harness.ended(batch)
    assert (batch.status, batch.completed) == ("completed", 6)
    assert len(harness.results(batch)) == 6
    assert len(harness.asked) == 8 + 6 + 2, "two were asked again"
    assert Counter(row.status for row in harness.gateway.logged()) == {"ok": 8 + 6}


async def test_a_batch_waits_while_users_fill_its_seats(harness: BatchesHarness) -> None:
    harness.hold = True
    asking = [asyncio.ensure_future(harness.gateway.http.post(CHAT, json=ASK)) for _ in range(2)]
    await harness.until(lambda: len(harness.asked) == 2)
    batch = harness.create([line("a")])
    harness.runner.start()
    await harness.until(lambda: harness.now(batch).status == "in_progress")
    await asyncio.sleep(0.2)
    assert len(harness.asked) == 2
    harness.release()
    await asyncio.gather(*asking)
    assert (await harness.ended(batch)).completed == 1


async def test_large_requests_run_alone(harness: BatchesHarness) -> None:
    batch, results = await harness.run([line("a", n=NUM_SEATS), line("b"), line("c", n=NUM_SEATS + 3), line("d")])
    assert (batch.completed, batch.failed) == (4, 0)
    assert len(results["c"]["response"]["body"]["choices"]) == NUM_SEATS + 3


async def test_a_large_request_that_waits_for_users_holds_no_other_batch_up(harness: BatchesHarness) -> None:
    harness.hold = True
    asking = asyncio.ensure_future(harness.gateway.http.post(CHAT, json=ASK))
    await harness.until(lambda: len(harness.asked) == 1)
    large = harness.create([line("a", n=NUM_SEATS)])
    fitting = harness.create([line("a", "fits", n=NUM_SEATS - 1)])
    harness.runner.start()
    await harness.until(lambda: "fits" in harness.asked)
    await asyncio.sleep(0.2)
    assert Counter(harness.asked) == {"hi": 1, "fits": NUM_SEATS - 1}
    harness.release()
    await asking
    assert [(await harness.ended(batch)).completed for batch in (fitting, large)] == [1, 1]


# ------------------------------------------------------------------------------------------------- engines and disks


async def test_requests_are_asked_again_when_the_engine_is_lost(harness: BatchesHarness) -> None:
    harness.hold = True
    batch = harness.create([line("a"), line("b"), line("c")])
    harness.runner.start()
    await harness.until(lambda: len(harness.asked) == 2)
    harness.gateway.engine.link.lose(harness.gateway.engine)
    await asyncio.sleep(0.1)
    assert len(harness.asked) == 2
    harness.hold = False
    harness.gateway.engine.connect()
    batch = await harness.ended(batch)
    assert (batch.status, batch.completed) == ("completed", 3)
    assert len(harness.asked) == 5
    assert harness.services.limiter.standing("local").today == Usage(3, 3 * 4), "each is charged once"
    assert Counter(row.status for row in harness.gateway.logged()) == {"ok": 3}


async def test_a_request_that_costs_three_engines_is_given_up(harness: BatchesHarness) -> None:
    harness.hold = True
    batch = harness.create([line("a")])
    harness.runner.start()
    for count in range(1, 4):
        await harness.until(lambda count=count: len(harness.asked) == count)
        harness.gateway.engine.link.lose(harness.gateway.engine)
        harness.gateway.engine.connect()
    batch = await harness.ended(batch)
    assert (batch.status, batch.failed, len(harness.asked)) == ("completed", 1, 3)
    response = harness.results(batch)["a"]["response"]
    assert (response["status_code"], response["body"]["error"]["code"]) == (503, "engine_lost")


async def test_a_full_disk_is_waited_for_and_shown(harness: BatchesHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    batch = harness.create([line("a"), line("b")])
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        harness.runner.start()
        waiting = await harness.until(lambda: harness.now(batch).waiting)
        assert "disk is full" in waiting
        assert harness.now(batch).status == "finalizing"
        assert harness.services.files.find(purpose="batch_output") == []
        assert [path.name for path in harness.services.files.root.glob("*output*")] == []
    batch = await harness.ended(batch)
    assert (batch.status, batch.waiting, len(harness.results(batch))) == ("completed", None, 2)


async def test_a_database_that_cannot_be_written_is_waited_for(harness: BatchesHarness) -> None:
    class Full(Batches):
        refusals = 5

        def add_results(self, *arguments: Any, **options: Any) -> Batch:
            if self.refusals:
                self.refusals -= 1
                raise OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))
            return super().add_results(*arguments, **options)

    harness.runner = harness.make_runner(Full(harness.database))
    batch, results = await harness.run([line(str(number)) for number in range(4)])
    assert (batch.status, len(results), len(harness.asked)) == ("completed", 4, 4)


async def test_a_batch_that_cannot_be_carried_on_fails_in_the_end(harness: BatchesHarness) -> None:
    class Broken(Batches):
        def answered_lines(self, id: str) -> set[int]:
            raise RuntimeError("a bug")

    harness.runner = harness.make_runner(Broken(harness.database))
    batch, _ = await harness.run([line("a")])
    assert [error.code for error in batch.errors] == ["internal_error"]


# ------------------------------------------------------------------------------------------------------------- kills


class Killed(Exception):
    """What a killed process's next write meets."""


class Death:
    """The moment at which a process dies: at its ``number``-th write, before or after it."""

    def __init__(self, number: int, *, after: bool) -> None:
        self.left, self.after, self.dead = number, after, False

    def at(self, write: Any, arguments: Any, options: Any) -> Any:
        if self.dead:
            raise Killed
        self.left -= 1
        self.dead = self.left == 0
        if self.dead and not self.after:
            raise Killed
        done = write(*arguments, **options)
        if self.dead:
            raise Killed
        return done


def mortal(kind: type[Any], death: Death, *names: str) -> type[Any]:
    """A store whose writes may be the last ones of its process."""

    def wrap(name: str) -> Any:
        real = getattr(kind, name)
        return lambda *arguments, **options: death.at(real, arguments, options)

    return type(kind.__name__, (kind,), {name: wrap(name) for name in names})


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", range(1, 9))
async def test_a_kill_at_any_write_loses_nothing_and_repeats_nothing(
    harness: BatchesHarness, number: int, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "MAX_FAILURES", 10**6)
    death = Death(number, after=after)
    names = ("begin", "add_results", "finalize", "end")
    doomed = mortal(Batches, death, *names)(harness.database)
    files = mortal(Files, death, "keep")(harness.database, harness.services.files.root)
    lines = [line(str(number), str(number)) for number in range(5)] + [line("bad", temperature=9)]
    batch = harness.create(lines)
    harness.runner = harness.make_runner(doomed, files)
    harness.runner.start()
    await harness.until(lambda: death.dead or harness.now(batch).ended)
    await harness.kill()
    durable = harness.services.batches.answered_lines(batch.id) or set()
    asked_before = Counter(harness.asked)

    harness.services.files.clean()
    harness.asked.clear()
    harness.runner = harness.make_runner()
    harness.runner.start()
    batch = await harness.ended(batch)
    results = harness.results(batch)
    assert (batch.status, batch.completed, batch.failed) == ("completed", 5, 1)
    assert {name: said(row) for name, row in results.items() if name != "bad"} == {str(n): str(n) for n in range(5)}
    assert results["bad"]["response"]["status_code"] == 400
    # What was durable was not asked again.
    again = {int(prompt) + 1 for prompt in harness.asked}
    assert not again & durable
    # Nor was it before the kill, when what could not be written had been asked again already.
    assert all(asked_before[str(number - 1)] <= 1 for number in durable)
    assert sorted(path.name for path in harness.services.files.root.iterdir() if path.is_file()) == sorted(
        harness.services.files.path(file).name for file in harness.services.files.find()
    )
    assert len(harness.services.files.find(purpose="batch_output")) == 2


async def test_one_runner_of_two_carries_on(harness: BatchesHarness) -> None:
    second = harness.make_runner()
    harness.runner.start()
    batch = harness.create([line(str(number), str(number)) for number in range(30)])
    await harness.until(lambda: harness.asked)
    second.start()
    try:
        batch = await harness.ended(batch)
    finally:
        await second.stop()
    assert (batch.completed, max(Counter(harness.asked).values())) == (30, 1)


async def test_another_runner_takes_over_at_once_when_one_stops(harness: BatchesHarness) -> None:
    harness.hold = True
    batch = harness.create([line(str(number), str(number)) for number in range(6)])
    harness.runner.start()
    await harness.until(lambda: len(harness.asked) == 2)
    await harness.runner.stop()
    assert harness.gateway.engine.link.num_open() == 0
    harness.hold = False
    harness.runner = harness.make_runner()
    harness.runner.start()
    batch = await harness.ended(batch)
    assert (batch.status, batch.completed) == ("completed", 6)
    assert harness.gateway.records.interactions.find(InteractionFilter(status="cancelled"), limit=10) == []


async def test_a_batch_waits_for_its_keys_budget(harness: BatchesHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "MAX_PAUSE_SECONDS", 0.05)
    keys = harness.services.keys
    # Two tokens of the prompt and up to eight of the answer, of which two are used.
    _, key = keys.create("shop", Role.APP, limits=Limits(requests_per_minute=1, concurrent=1, tokens_per_day=20))
    who = Principal("shop", Role.APP, key.id)
    large = line("large", max_tokens=50)
    batch = harness.create([large, *(line(f"{number}") for number in range(9))], who)
    harness.runner.start()
    await harness.until(lambda: harness.now(batch).waiting)
    waiting = harness.now(batch)
    assert waiting.waiting is not None
    assert "20 tokens a day" in waiting.waiting
    assert (waiting.failed, waiting.status) == (1, "in_progress")
    assert waiting.completed < 9
    keys.change(key.id, {"limits": Limits(tokens_per_day=1000)})
    ended = await harness.ended(batch)
    assert (ended.completed, ended.failed, ended.waiting) == (9, 1, None)
    assert harness.results(ended)["large"]["response"]["body"]["error"]["type"] == "tokens"
    standing = harness.services.limiter.standing(key.id)
    assert (standing.requests, standing.today.tokens) == (0, 9 * 4)
