"""Both clients against a real server: streams as they arrive, uploads from disk, connections that break."""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.responses import JSONResponse

from graftwork import AsyncClient, Client
from graftwork.clients import errors
from tests.clients.fake_server import BASE, SECRET, FakeServer

MakeClient = Callable[..., Any]


def test_a_round_through_all_calls(make_client: MakeClient, server: FakeServer, peft_folder: Path) -> None:
    server.key = "k"
    client = make_client(server.url, "k")
    assert client.health().status == "ok"
    assert client.ready().ready
    assert client.metrics().startswith("graftwork_requests_total")
    first = client.adapters.push("intents", peft_folder)
    assert (first.id, first.version, first.created, first.verified) == ("intents@1", 1, True, False)
    again = client.adapters.push("intents", peft_folder)
    assert (again.id, again.created) == ("intents@1", False)
    second = client.adapters.push("intents", server_path="/data/second", alias="candidate", metadata={"by": "ann"})
    assert second.metadata == {"by": "ann"}
    assert [model.id for model in client.models()] == [BASE, "intents"]
    assert client.model("intents").root == "intents@1"
    assert client.model(BASE).graftwork["quantize"] == "int8"
    assert client.chat("intents", "where is my card").adapter == "intents@1"
    assert client.adapters.promote("intents", 2).to_version == 2
    assert client.chat("intents", "where is my card").adapter == "intents@2"
    assert client.complete("intents@candidate", "once upon").text == "once upon"
    assert client.score("intents@1", [5, 6, 7]).total == -1.0
    assert client.adapters.rollback("intents", reason="worse").to_version == 1
    with pytest.raises(errors.ConflictError, match="in use"):
        client.adapters.retire("intents", 1)
    adapter = client.adapters.get("intents")
    assert (adapter.aliases, adapter.aliases_of(2)) == ({"live": 1, "candidate": 2}, ("candidate",))
    assert [event.action for event in client.adapters.history("intents", limit=2)] == ["rollback", "promote"]
    assert [adapter.name for adapter in client.adapters.list()] == ["intents"]
    key = client.keys.create("ci")
    assert (key.secret, client.keys.list().data[0].secret) == (SECRET, None)
    assert client.keys.revoke(key.id).revoked_at is not None
    with pytest.raises(errors.NotFoundError) as raised:
        client.chat("nobody", "hello")
    assert raised.value.request_id is not None
    with pytest.raises(errors.AuthenticationError):
        make_client(server.url, "another").models()


def test_a_connection_is_let_go_before_the_other_end_does(make_client: MakeClient) -> None:
    """A request that is sent while the server closes for idleness breaks, and Uvicorn closes after five seconds."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 15\r\n\r\n"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = make_client(f"http://127.0.0.1:{listener.getsockname()[1]}")
        asked = threading.Thread(target=client.health)
        asked.start()
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(head + b'{"status":"ok"}')
            asked.join(10)
            time.sleep(4)
            again = threading.Thread(target=client.health)
            again.start()
            listener.settimeout(10)
            fresh, _ = listener.accept()
            with fresh:
                fresh.recv(65536)
                fresh.sendall(head + b'{"status":"ok"}')
                again.join(10)
            assert connection.recv(1) == b""


def test_a_stream_arrives_piece_by_piece(make_client: MakeClient, server: FakeServer) -> None:
    server.seed("intents", 1)
    stream = make_client(server.url).chat_stream("intents", "one two three", max_tokens=9)
    assert (stream.adapter, stream.usage) == (None, None)
    with stream as answer:
        assert answer.adapter == "intents@1"
        assert not answer.ask_feedback
        deltas = list(answer)
    assert [delta.text for delta in deltas] == [" one", " two", " three", ""]
    assert deltas[-1].finish_reason == "stop"
    assert stream.usage is not None
    assert stream.usage.completion_tokens == 3
    (body,) = server.asked("POST", "/v1/chat/completions")
    assert (body["stream"], body["stream_options"], body["max_tokens"]) == (True, {"include_usage": True}, 9)


def test_a_stream_needs_no_with(make_client: MakeClient, server: FakeServer) -> None:
    texts = [delta.text for delta in make_client(server.url).complete_stream(BASE, "one two")]
    assert texts == [" one", " two", ""]


def test_an_answer_is_read_once(make_client: MakeClient, server: FakeServer) -> None:
    stream = make_client(server.url).chat_stream(BASE, "one two")
    list(stream)
    with pytest.raises(RuntimeError):
        list(stream)
    assert len(server.asked("POST", "/v1/chat/completions")) == 1


def test_unusual_characters_survive(make_client: MakeClient, server: FakeServer) -> None:
    assert "".join(d.text for d in make_client(server.url).chat_stream("wild", "x")) == "red\x1b[31m\x07 \u2028 grün\n"


def test_leaving_a_stream_stops_the_server(make_client: MakeClient, server: FakeServer) -> None:
    with make_client(server.url).chat_stream("endless", "on and on") as answer:
        for delta in itertools.islice(answer, 5):
            assert delta.text
    assert server.disconnected.wait(5)


def test_a_stream_that_fails_in_the_middle(make_client: MakeClient, server: FakeServer) -> None:
    deltas = iter(make_client(server.url).chat_stream("broken", "one two"))
    assert next(deltas).text == " one"
    with pytest.raises(errors.InterruptedAnswerError, match="restarted") as raised:
        next(deltas)
    assert raised.value.code == "unavailable"
    for model in ("cut", "early"):
        with pytest.raises(errors.GraftworkConnectionError, match="broke"):
            list(make_client(server.url).chat_stream(model, "one two"))


def test_a_stream_that_is_refused(make_client: MakeClient, server: FakeServer, naps: list[float]) -> None:
    error = {"error": {"message": "the queue is full", "type": "rate_limit_error", "param": None, "code": "overloaded"}}
    server.refusals = [JSONResponse(error, 429, headers={"retry-after": "1"}) for _ in range(4)]
    client = make_client(server.url)
    with pytest.raises(errors.OverloadedError, match="the queue is full"):
        list(client.chat_stream(BASE, "hello"))
    assert "".join(delta.text for delta in client.chat_stream(BASE, "hello")) == " hello"
    assert len(naps) == 3


def test_an_upload_is_what_is_on_the_disk(make_client: MakeClient, server: FakeServer, peft_folder: Path) -> None:
    (peft_folder / "chat_template.jinja").write_text("{{ messages }}")
    seen: list[tuple[int, int]] = []
    client = make_client(server.url)
    client.adapters.push(
        "intents",
        peft_folder,
        alias="candidate",
        parent=3,
        data_digest="sha256:12",
        metadata={"note": "grün"},
        progress=lambda sent, total: seen.append((sent, total)),
    )
    (body,) = server.asked("POST", "/v1/adapters/intents/versions")
    names = ("adapter_config.json", "adapter_model.safetensors", "chat_template.jinja")
    assert body["files"] == {name: (peft_folder / name).read_bytes() for name in names}
    assert (body["parent"], body["data_digest"], body["metadata"]) == ("3", "sha256:12", '{"note": "gr\\u00fcn"}')
    total = sum(len(data) for data in body["files"].values())
    assert seen[-1] == (total, total)
    assert [sent for sent, _ in seen] == sorted({sent for sent, _ in seen})
    assert len(seen) > 2
    headers = server.requests[-1][2]
    assert int(headers["content-length"]) > total
    assert server.requests[-1][1].endswith("?alias=candidate")


def test_an_upload_that_is_refused_is_sent_again_in_full(
    make_client: MakeClient, server: FakeServer, peft_folder: Path, naps: list[float]
) -> None:
    server.refusals = [JSONResponse({"error": {"message": "busy"}}, 503, headers={"retry-after": "0"})]
    assert make_client(server.url).adapters.push("intents", peft_folder).created
    first, second = server.asked("POST", "/v1/adapters/intents/versions")
    assert first["files"] == second["files"]


@contextmanager
def _rude_server(*answers: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """Answers each connection with some bytes, whatever they are, and hangs up."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    heard.append(connection.recv(65536))
                    connection.sendall(answer)
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(1 << 20):  # what is still on its way; a reset would swallow the answer
                        pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", heard
        thread.join(5)


OK = b'HTTP/1.1 200 OK\r\ncontent-length: 15\r\nconnection: close\r\n\r\n{"status":"ok"}'


def test_a_get_survives_connections_that_break(make_client: MakeClient, naps: list[float]) -> None:
    with _rude_server(b"", OK[:60], OK) as (url, heard):
        assert make_client(url).health().status == "ok"
        assert len(heard) == 3


def test_a_post_is_not_sent_twice_when_the_connection_breaks(make_client: MakeClient, naps: list[float]) -> None:
    with _rude_server(b"") as (url, heard):
        with pytest.raises(errors.GraftworkConnectionError, match="Whether the request took effect is not known"):
            make_client(url).chat(BASE, "hello")
        assert len(heard) == 1


def test_another_service_is_recognized(make_client: MakeClient) -> None:
    page = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\n<html>"
    with _rude_server(page) as (url, _), pytest.raises(errors.GraftworkProtocolError, match="Graftwork server"):
        make_client(url).health()


def test_a_refusal_before_the_upload_is_through(make_client: MakeClient, peft_folder: Path) -> None:
    with (peft_folder / "adapter_model.safetensors").open("wb") as file:
        file.truncate(50_000_000)
    body = b'{"error": {"message": "at most 1 GB, please", "type": "x", "param": null, "code": "too_large"}}'
    refusal = b"HTTP/1.1 413 Too Large\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s" % (len(body), body)
    with _rude_server(refusal) as (url, _), pytest.raises(errors.TooLargeError, match="at most 1 GB, please"):
        make_client(url).adapters.push("intents", peft_folder)


async def test_many_streams_at_once(server: FakeServer) -> None:
    async with AsyncClient(server.url) as client:

        async def read(number: int) -> str:
            async with client.chat_stream(BASE, f"this is {number}") as answer:
                return "".join([delta.text async for delta in answer])

        answers = await asyncio.gather(*(read(number) for number in range(16)))
    assert answers == [f" this is {number}" for number in range(16)]


async def test_a_cancelled_task_stops_the_server(server: FakeServer) -> None:
    async with AsyncClient(server.url) as client:
        started = asyncio.Event()

        async def read() -> None:
            async for _ in client.chat_stream("endless", "on and on"):
                started.set()

        task = asyncio.create_task(read())
        await asyncio.wait_for(started.wait(), 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(server.disconnected.wait, 5)


def test_threads_share_a_client(server: FakeServer) -> None:
    with Client(server.url) as client:
        answers: dict[int, str] = {}

        def ask(number: int) -> None:
            answers[number] = client.chat(BASE, f"this is {number}").text

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
    assert answers == {number: f"this is {number}" for number in range(8)}
