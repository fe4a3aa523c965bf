"""What stands around all routes: ``HEAD``, and packed bodies."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from graftwork.server.http import edge
from tests.server.documented import document
from tests.server.fakes import World, make_world
from tests.server.http_errors import HERE, error


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


@pytest.fixture
def client(world: World) -> Any:
    with TestClient(world.app, base_url="http://127.0.0.1:8000", client=HERE) as client:
        yield client


@pytest.mark.parametrize("path", sorted(path for path, each in document()["paths"].items() if "get" in each))
def test_head_is_answered_wherever_get_is(client: TestClient, path: str) -> None:
    target = re.sub(r"\{\w+\}", "nothing", path)
    got, head = client.get(target), client.head(target)
    assert (head.status_code, head.content) == (got.status_code, b"")
    assert head.headers.keys() == got.headers.keys()
    different = {name for name in got.headers if got.headers[name] != head.headers[name]}
    assert different <= ({"x-request-id", "content-length"} if path == "/metrics" else {"x-request-id"})


def test_head_where_there_is_no_get(client: TestClient) -> None:
    answer = client.head("/v1/feedback/nothing")
    assert (answer.status_code, answer.content) == (404, b"")
    assert client.head("/v1/interactions").status_code == 200


def test_head_ends_a_stream_at_its_first_piece(world: World) -> None:
    sent: list[Any] = []
    told: list[int] = []

    async def streaming(scope: Any, receive: Any, send: Any) -> None:
        assert scope["method"] == "GET"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for piece in range(100):
            told.append(piece)
            await send({"type": "http.response.body", "body": b"x", "more_body": True})

    async def send(message: Any) -> None:
        sent.append(message)

    middleware = edge.EdgeMiddleware(streaming, metrics=world.services.metrics, audit_log=world.services.audit_log)
    scope = {"type": "http", "method": "HEAD", "path": "/", "headers": [], "state": {}}
    asyncio.run(middleware(scope, None, send))  # type: ignore[arg-type]
    assert scope["method"] == "HEAD"
    assert told == [0]
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[-1] == {"type": "http.response.body", "body": b""}


def test_large_packed_bodies_are_unpacked_beside_the_event_loop(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[bool] = []
    unpack, loop_thread = edge._unpack, client.portal.call(threading.get_ident)  # type: ignore[union-attr]

    def watched(*arguments: Any, **options: Any) -> bytes:
        threads.append(threading.get_ident() != loop_thread)
        return unpack(*arguments, **options)

    monkeypatch.setattr(edge, "_unpack", watched)
    noise = random.Random(0).randbytes(4000).hex()
    for name, beside in (("short", False), (noise, True)):
        body = gzip.compress(json.dumps({"name": name, "role": "king"}).encode())
        threads.clear()
        answer = client.post("/v1/keys", content=body, headers={"content-encoding": "gzip"})
        assert "role" in error(answer, 400)["message"]
        assert threads[0] is beside


def test_what_a_packed_body_holds_is_limited(client: TestClient) -> None:
    body = gzip.compress(b" " * (edge.MAX_JSON_BYTES + 1))
    assert len(body) > edge.MAX_PACKED_INLINE
    answer = client.post("/v1/keys", content=body, headers={"content-encoding": "gzip"})
    assert error(answer, 413)["code"] == "too_large"
