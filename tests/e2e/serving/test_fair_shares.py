"""One key floods a server with long streams, and nobody else notices."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import MakeServer
from tests.e2e.requests import ask
from tests.e2e.server_process import BASE, Server, eventually

ADMIN = secrets.token_urlsafe(32)
MAX_QUEUE = 128
NUM_SMALL_KEYS = 9


@pytest.fixture(scope="module")
def crowded(new_server: MakeServer) -> Iterator[Server]:
    flags = ("--max-queue", str(MAX_QUEUE), "--no-interaction-log")
    server = new_server(*flags, environment={"GRAFTWORK_ADMIN_KEY": ADMIN})
    server.key = ADMIN
    server.start_and_wait()
    yield server
    assert server.stop() == 0
    assert "Traceback" not in server.log


class Flood:
    """Long streams under one key, which nobody reads until they are left."""

    def __init__(self, server: Server, key: str) -> None:
        self.client = httpx.Client(
            base_url=server.url,
            headers={"authorization": f"Bearer {key}"},
            timeout=120,
            limits=httpx.Limits(max_connections=None),
        )
        self.streams = ExitStack()

    def open(self) -> int:
        """Begin one more stream. Returns the status."""
        body: dict[str, Any] = {"model": BASE, "stream": True, "max_tokens": 4000, "ignore_eos": True}
        body["messages"] = [{"role": "user", "content": "Tell me everything."}]
        stream = self.client.stream("POST", "/v1/chat/completions", json=body)
        return self.streams.enter_context(stream).status_code

    def leave(self) -> None:
        self.streams.close()
        self.client.close()


def test_a_key_that_floods_the_server_is_alone_in_being_refused(crowded: Server) -> None:
    with crowded.client() as admin:
        secret = [admin.keys.create(name).secret or "" for name in ("flood", *map(str, range(NUM_SMALL_KEYS)))]
    flood = Flood(crowded, secret[0])
    try:
        assert [flood.open() for _ in range(MAX_QUEUE)] == [200] * MAX_QUEUE
        assert flood.open() == 429
        eventually(lambda: crowded.metric("running") == 32, 60, "the flood has all places")

        def ask_one_by_one(key: str) -> list[str]:
            with crowded.openai(key) as client:
                return [ask(client, BASE, max_tokens=4).text for _ in range(3)]

        with ThreadPoolExecutor(NUM_SMALL_KEYS) as pool:
            answers = list(pool.map(ask_one_by_one, secret[1:]))
        assert len({text for texts in answers for text in texts}) == 1  # in whatever company
        assert crowded.metric("preemptions_total") > 0
        # All of it goes on, and takes every place that the others have left.
        eventually(lambda: crowded.metric("running") == 32, 60, "the flood has all places again")
        assert crowded.metric("running") + crowded.metric("queue_depth") == MAX_QUEUE
        assert flood.open() == 429
    finally:
        flood.leave()
    eventually(lambda: crowded.metric("running") == crowded.metric("queue_depth") == 0, 60, "everybody has left")
