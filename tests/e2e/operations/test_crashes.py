"""Crashes of the engine and the server: open requests fail at once, the service recovers, and no data is lost."""

from __future__ import annotations

import json
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import openai
import pytest

from graftwork.clients.errors import UnavailableError
from tests.e2e.conftest import MakeServer
from tests.e2e.peft_folders import NAMES, SmallAdapters
from tests.e2e.requests import OpenStream, ask
from tests.e2e.server_process import BASE, Server, eventually

MODELS = (BASE, *NAMES)


def test_the_engine_worker_is_killed_under_load(exact_server: Server) -> None:
    server = exact_server
    with server.openai() as client, server.client(max_retries=0) as operator:
        before = {model: ask(client, model, max_tokens=4) for model in MODELS}
        restarts = server.metric("worker_restarts_total")
        streams = [OpenStream(client, MODELS[number % len(MODELS)]).wait_until_begun() for number in range(12)]
        waiting = OpenStream(client, BASE)  # perhaps still without a first token
        worker = server.worker
        worker.kill()
        killed_at = time.monotonic()
        for stream in (*streams, waiting):
            stream.wait_until_ended(seconds=5)
            assert stream.ended_at is not None
            assert stream.ended_at - killed_at < 1
            assert isinstance(stream.error, openai.APIError)
            assert stream.finish_reason is None
        assert "again" in streams[0].error.message  # type: ignore[union-attr]
        assert server.status() == 503
        with pytest.raises(openai.InternalServerError) as raised:
            ask(client, BASE)
        assert raised.value.status_code == 503
        assert raised.value.response.headers["retry-after"]
        with pytest.raises(UnavailableError):
            operator.adapters.push("intents", server_path=Path("/anywhere"))
        # What needs no engine goes on.
        assert operator.adapters.get("intents").aliases == {"live": 1}
        assert operator.health().status == "ok"
        assert operator.ready().status == "recovering"

        server.wait_until_ready()
        assert server.worker.pid != worker.pid
        assert server.metric("worker_restarts_total") == restarts + 1
        for model in MODELS:
            ask(client, model, max_tokens=4).check_same(before[model], tolerance=0)


@pytest.mark.slow
def test_the_worker_is_killed_again_and_again(exact_server: Server) -> None:
    """Also while it comes up: killed workers that were ready once are always replaced."""
    with exact_server.openai() as client:
        before = ask(client, "intents", max_tokens=8)
        for _ in range(2):
            exact_server.worker.kill()
            eventually(lambda: exact_server.status() == 503, 5, "/ready says so")
            exact_server.wait_until_ready()
        ask(client, "intents", max_tokens=8).check_same(before, tolerance=0)


def test_a_stopped_worker_is_no_dead_worker(exact_server: Server) -> None:
    """A worker that hangs for a while (a debugger, a suspended machine) goes on where it was."""
    with exact_server.openai() as client:
        stream = OpenStream(client, "intents", max_tokens=30).wait_until_begun()
        exact_server.worker.send_signal(signal.SIGSTOP)
        time.sleep(1)
        exact_server.worker.send_signal(signal.SIGCONT)
        assert stream.wait_until_ended().finish_reason == "length"


def test_the_main_process_is_killed(new_server: MakeServer, small: SmallAdapters, tmp_path: Path) -> None:
    server = new_server().start_and_wait()
    with server.client() as operator, server.openai() as client:
        for number in (1, 2, 3):
            operator.adapters.push("small", small.write(tmp_path / str(number), seed=number), alias="live")
        operator.adapters.rollback("small", reason="worse")
        before = {model: ask(client, model, max_tokens=6) for model in ("small@1", "small@2", "small@3", "small", BASE)}
        history = operator.adapters.history("small").data
        stream = OpenStream(client, "small").wait_until_begun()
        server.process.kill()
        server.wait(seconds=2)
        assert stream.wait_until_ended().error is not None

    server.start_and_wait()
    with server.client() as operator, server.openai() as client:
        assert operator.adapters.get("small").aliases == {"live": 2}
        # Nothing is read before somebody asks for it.
        assert {version.residency for version in operator.adapters.get("small").versions} == {"store"}
        assert operator.adapters.history("small").data == history
        for model, answer in before.items():
            again = ask(client, model, max_tokens=6)
            assert again.adapter == answer.adapter
            assert again.text == answer.text
    assert server.stop() == 0


def test_the_server_is_killed_in_the_middle_of_a_batch(new_server: MakeServer) -> None:
    """What was answered and stored by then is not computed again; everything stands in the output file, once."""
    server = new_server().start_and_wait()
    body = {"model": BASE, "max_tokens": 12, "ignore_eos": True}
    lines = [
        {
            "custom_id": f"request-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {**body, "messages": [{"role": "user", "content": f"Count from {number}."}]},
        }
        for number in range(60)
    ]
    with server.openai() as client:
        file = client.files.create(file=("a.jsonl", "\n".join(map(json.dumps, lines)).encode()), purpose="batch")
        id = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h").id
        eventually(lambda: completed(client, id) >= 5, 120, "some are answered")
        server.worker.kill()  # the engine's alone, first
        server.wait_until_ready()
        eventually(lambda: completed(client, id) >= 20, 120, "more are answered")
        server.process.kill()
        server.wait(seconds=2)
    with closing(sqlite3.connect(server.home / "graftwork.db")) as database:
        stored = {line: json.loads(said) for line, said in database.execute("SELECT line, content FROM batch_results")}
    assert 20 <= len(stored) < 60

    server.start_and_wait()
    with server.openai() as client:
        eventually(lambda: client.batches.retrieve(id).status == "completed", 120, "the batch is completed")
        batch = client.batches.retrieve(id)
        assert batch.request_counts is not None
        assert (batch.request_counts.total, batch.request_counts.completed, batch.error_file_id) == (60, 60, None)
        assert batch.output_file_id is not None
        results = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    assert [result["custom_id"] for result in results] == [f"request-{number}" for number in range(60)]
    assert len({result["response"]["body"]["id"] for result in results}) == 60
    assert {line: results[line - 1] for line in stored} == stored
    assert {result["response"]["body"]["usage"]["completion_tokens"] for result in results} == {12}
    assert server.stop() == 0
    assert "Traceback" not in server.log


def completed(client: openai.OpenAI, id: str) -> int:
    counts = client.batches.retrieve(id).request_counts
    return 0 if counts is None else counts.completed


@pytest.mark.slow
def test_a_server_whose_listener_is_killed_ends(new_server: MakeServer) -> None:
    """Nobody could ask it anything: whoever supervises it must see that."""
    server = new_server().start_and_wait()
    server.api.kill()
    assert server.wait() == 1
    assert "an API process died" in server.log
