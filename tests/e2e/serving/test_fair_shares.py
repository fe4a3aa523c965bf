"""What keys notice of one another: nothing of a flood of long streams, and nothing of what others have asked."""

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


def create_keys(server: Server, *names: str) -> list[str]:
    with server.client() as admin:
        return [admin.keys.create(name).secret or "" for name in names]


def test_a_key_learns_nothing_of_what_another_asked(crowded: Server) -> None:
    one, other = create_keys(crowded, "one", "other")
    prompt = " ".join(f"Rule {number} is a secret of one key." for number in range(20))

    def num_cached(key: str) -> int:
        with crowded.openai(key) as client:
            usage = client.completions.create(model=BASE, prompt=prompt, max_tokens=1).usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        return usage.prompt_tokens_details.cached_tokens or 0

    assert [num_cached(key) > 0 for key in (one, other, one, other)] == [False, False, True, True]


def test_a_key_that_floods_the_server_is_alone_in_being_refused(crowded: Server) -> None:
    secret = create_keys(crowded, "flood", *(f"small-{number}" for number in range(NUM_SMALL_KEYS)))
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
