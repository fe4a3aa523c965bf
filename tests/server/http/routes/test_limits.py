"""Limits of keys over HTTP: what clients see, and fifty keys at their limits under a hundred clients."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from graftwork.adapters.access.keys import Role
from graftwork.adapters.access.limits import Limits
from graftwork.adapters.errors import Overloaded
from graftwork.server.generation.limiter import Limiter
from tests.server.scripted_engine import ASK, CHAT, GatewayHarness, connected_harness


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[GatewayHarness]:
    async with connected_harness(tmp_path) as harness:
        yield harness


def make_key(harness: GatewayHarness, name: str = "shop", role: Role = Role.APP, **limits: int) -> dict[str, str]:
    """The header of a new key with these limits."""
    secret, _ = harness.world.keys.create(name, role, limits=Limits(**limits))
    return {"authorization": f"Bearer {secret}"}


def openai_client(harness: GatewayHarness, headers: dict[str, str], **options: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url="http://127.0.0.1:8000/v1",
        api_key=headers["authorization"].split()[1],
        http_client=harness.http,
        **options,
    )


async def test_what_openais_client_sees_of_limits_per_minute(harness: GatewayHarness) -> None:
    headers = make_key(harness, requests_per_minute=2, tokens_per_minute=100)
    client = openai_client(harness, headers, max_retries=0)
    raw = await client.chat.completions.with_raw_response.create(**ASK)
    seen = {name: value for name, value in raw.headers.items() if name.startswith("x-ratelimit-")}
    assert seen.keys() == {
        f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")
    }
    # Two tokens of the prompt, and two of the answer: what was reserved beyond is given back.
    assert (seen["x-ratelimit-remaining-requests"], seen["x-ratelimit-remaining-tokens"]) == ("1", "96")
    async with client.chat.completions.with_streaming_response.create(**ASK, stream=True) as streamed:
        assert streamed.headers["x-ratelimit-remaining-requests"] == "0"
        await streamed.read()
    with pytest.raises(openai.RateLimitError) as caught:
        await client.chat.completions.create(**ASK)
    assert (caught.value.type, caught.value.code, caught.value.param) == ("requests", "rate_limit_exceeded", None)
    assert 55 <= int(caught.value.response.headers["retry-after"]) <= 60
    assert "x-should-retry" not in caught.value.response.headers
    assert caught.value.response.headers["x-ratelimit-remaining-requests"] == "0"


async def test_what_openais_client_sees_of_a_budget(harness: GatewayHarness) -> None:
    client = openai_client(harness, make_key(harness, tokens_per_day=14, tokens_per_month=1000))
    answer = await client.chat.completions.with_raw_response.create(**ASK)
    assert not [name for name in answer.headers if name.startswith("x-ratelimit-")]
    await client.chat.completions.create(**ASK)
    began = time.monotonic()
    with pytest.raises(openai.RateLimitError) as caught:
        await client.chat.completions.create(**ASK)
    # It does not ask again before a day has passed.
    assert time.monotonic() - began < 0.4
    assert (caught.value.type, caught.value.code) == ("insufficient_quota", "insufficient_quota")
    assert 0 < int(caught.value.response.headers["retry-after"]) <= 86400


async def test_a_request_that_no_minute_has_room_for(harness: GatewayHarness) -> None:
    client = openai_client(harness, make_key(harness, tokens_per_minute=9))
    with pytest.raises(openai.RateLimitError, match="smaller max_tokens") as caught:
        await client.chat.completions.create(**ASK)
    assert "retry-after" not in caught.value.response.headers
    assert caught.value.response.headers["x-should-retry"] == "false"
    await client.chat.completions.create(**{**ASK, "max_tokens": 7})


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, ASK),
        ("/v1/completions", {"model": "intents", "prompt": "hi", "max_tokens": 8}),
        ("/v1/responses", {"model": "intents", "input": "hi", "max_output_tokens": 16}),
        ("/v1/messages", {"model": "intents", "messages": ASK["messages"], "max_tokens": 8}),
        ("/v1/embeddings", {"model": "intents", "input": "hi"}),
    ],
)
async def test_every_route_that_computes_counts(harness: GatewayHarness, path: str, body: dict[str, Any]) -> None:
    headers = make_key(harness, requests_per_minute=1)
    first, second = [await harness.http.post(path, json=body, headers=headers) for _ in range(2)]
    assert (first.status_code, second.status_code) == (200, 429)
    assert (first.headers["x-ratelimit-remaining-requests"], second.headers["retry-after"]) == ("0", "60")
    if path == "/v1/messages":
        assert second.json()["error"]["type"] == "rate_limit_error"
    unlimited = make_key(harness, "another")
    assert (await harness.http.post(path, json=body, headers=unlimited)).status_code == 200


async def test_what_is_refused_for_another_reason_does_not_count(
    harness: GatewayHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = make_key(harness, requests_per_minute=1, concurrent=1)
    assert (await harness.ask(headers=headers, model="nothing")).status_code == 404
    assert (await harness.ask(headers=headers, temperature=9)).status_code == 400
    with monkeypatch.context() as full:

        def refuse(*_: Any, **__: Any) -> None:
            raise Overloaded("the queue is full")

        full.setattr(harness.engine.link, "open", refuse)
        overloaded = await harness.ask(headers=headers)
        assert (overloaded.status_code, overloaded.json()["error"]["code"]) == (429, "overloaded")
    assert (await harness.ask(headers=headers)).status_code == 200


async def test_an_answer_that_fails_or_is_left_ends(harness: GatewayHarness) -> None:
    headers = make_key(harness, concurrent=1, tokens_per_day=10_000)
    for _ in range(2):
        assert (await harness.ask(headers=headers, messages=[{"role": "user", "content": "fail"}])).status_code == 500
    for stream in (False, True):
        stalled = {**ASK, "messages": [{"role": "user", "content": "stall"}], "stream": stream}
        asking = asyncio.ensure_future(harness.http.post(CHAT, json=stalled, headers=headers))
        while _standing(harness, headers).open == 0:
            await asyncio.sleep(0.01)
        refused = await harness.ask(headers=headers)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        while _standing(harness, headers).open:
            await asyncio.sleep(0.01)
    # "fail" and "stall" with a byte of an answer each.
    assert _standing(harness, headers).today.tokens == 2 * (4 + 1) + 2 * (5 + 1)


def _standing(harness: GatewayHarness, headers: dict[str, str]) -> Any:
    return harness.gateway.limiter.standing(headers["authorization"].split("_")[1])


async def test_a_client_that_left_before_the_first_event_is_not_waited_for(harness: GatewayHarness) -> None:
    headers = make_key(harness, concurrent=1)
    body = httpx.Request("POST", "http://x", json={**ASK, "stream": True}).content
    received = False

    async def receive() -> Any:
        nonlocal received
        if received:
            return {"type": "http.disconnect"}
        received = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None: ...

    scope = {
        **{"type": "http", "method": "POST", "path": CHAT, "raw_path": CHAT.encode(), "query_string": b""},
        "headers": [(b"host", b"localhost"), (b"authorization", headers["authorization"].encode())],
        **{"client": ("127.0.0.1", 50000), "server": ("127.0.0.1", 8000), "scheme": "http", "http_version": "1.1"},
    }
    await harness.world.app(scope, receive, send)
    assert _standing(harness, headers).open == 0
    assert harness.engine.link.num_open() == 0


async def test_limits_change_while_they_hold(harness: GatewayHarness) -> None:
    headers = make_key(harness, requests_per_minute=1)
    admin = make_key(harness, "boss", Role.ADMIN)
    (key,) = [key for key in harness.world.keys.list() if key.name == "shop"]
    assert [(await harness.ask(headers=headers)).status_code for _ in range(2)] == [200, 429]
    changed = await harness.http.patch(f"/v1/keys/{key.id}", json={"limits": {"requests_per_minute": 2}}, headers=admin)
    assert changed.status_code == 200
    assert [(await harness.ask(headers=headers)).status_code for _ in range(2)] == [200, 429]
    usage = (await harness.http.get(f"/v1/keys/{key.id}/usage", headers=admin)).json()
    assert usage == {
        "object": "key.usage",
        "id": key.id,
        "minute": {"requests": 2, "tokens": 8},
        "day": {"requests": 2, "tokens": 8},
        "month": {"requests": 2, "tokens": 8},
        "open": 0,
    }


async def test_an_adapter_has_limits_that_its_keys_share(harness: GatewayHarness) -> None:
    one, other = make_key(harness, "one"), make_key(harness, "other")
    operator, path = make_key(harness, "ops", Role.OPERATOR), "/v1/adapters/intents/limits"
    body = {"requests_per_minute": 2, "tokens_per_month": 1000}
    made = (await harness.http.put(path, json=body, headers=operator)).json()
    assert made["limits"] == {**dict.fromkeys(Limits.__dataclass_fields__), **body}
    assert [(await harness.ask(headers=headers)).status_code for headers in (one, other)] == [200, 200]
    refused = await harness.ask(headers=one)
    assert (refused.status_code, refused.json()["error"]["type"]) == (429, "requests")
    assert "the adapter intents" in refused.json()["error"]["message"]
    assert (await harness.ask(headers=one, model="tiny-base")).status_code == 200
    embedded = await harness.http.post("/v1/embeddings", json={"model": "intents", "input": "hi"}, headers=one)
    assert embedded.status_code == 429
    shown = (await harness.http.get(path, headers=operator)).json()
    assert (shown["minute"], shown["month"], shown["open"]) == ({"requests": 2, "tokens": 8},) * 2 + (0,)
    assert (await harness.http.put(path, json={}, headers=operator)).json()["limits"]["requests_per_minute"] is None
    assert (await harness.ask(headers=one)).status_code == 200
    for body, status in (({"concurrent": 0}, 400), ({"hourly": 1}, 400), ([], 400)):
        assert (await harness.http.put(path, json=body, headers=operator)).status_code == status
    assert (await harness.http.put("/v1/adapters/none/limits", json={}, headers=operator)).status_code == 404


async def test_fifty_keys_at_their_limits_under_a_hundred_clients(
    harness: GatewayHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No key gets more than its limit in any window, and none with room is refused.

    Time runs forty times as fast for the windows.
    """
    began = time.monotonic()
    monkeypatch.setattr(harness.gateway.limiter, "_clock", lambda: (time.monotonic() - began) * 40)
    harness.engine.link.max_open = 1000
    draw = random.Random(0)
    keys = [
        (make_key(harness, f"key {number}", requests_per_minute=limit), limit)
        for number in range(50)
        for limit in [draw.randint(1, 6)]
    ]
    begun: dict[str, list[float]] = defaultdict(list)
    begin = Limiter.begin

    def watched(self: Limiter, key_id: str, tokens: int, **more: Any) -> Any:
        reservation = begin(self, key_id, tokens, **more)
        begun[key_id].append(reservation._charge.at)  # type: ignore[union-attr]
        return reservation

    statuses: Counter[int] = Counter()
    monkeypatch.setattr(Limiter, "begin", watched)

    async def client(number: int) -> None:
        choice = random.Random(number)
        for _ in range(12):
            headers, limit = choice.choice(keys)
            key_id = headers["authorization"].split("_")[1]
            before = harness.gateway.limiter._clock()
            answer = await harness.ask(headers=headers)
            statuses[answer.status_code] += 1
            if answer.status_code == 429:
                # All of its requests began within the minute before it was refused.
                now = harness.gateway.limiter._clock()
                assert len([at for at in begun[key_id] if before - 60 < at <= now]) >= limit
            await asyncio.sleep(choice.random() / 50)

    await asyncio.gather(*map(client, range(100)))
    assert set(statuses) == {200, 429}
    assert min(statuses.values()) > 100
    for headers, limit in keys:
        times = begun[headers["authorization"].split("_")[1]]
        for earlier, later in zip(times, times[limit:], strict=False):
            assert later - earlier >= 60 - 1e-6
