"""Embeddings with a scripted engine: what the engine is asked, what is counted, and that nothing is logged."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from graftwork.adapters.access.keys import Role
from graftwork.adapters.errors import Overloaded, Unavailable
from graftwork.server.engine.request import SamplingParams
from graftwork.server.generation import embeddings
from graftwork.server.openai.requests.embeddings import EmbeddingRequest
from graftwork.server.transport.pool import EnginePool, PoolMember
from tests.server.http_errors import error
from tests.server.scripted_engine import GatewayHarness, connected_harness

EMBED = "/v1/embeddings"


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[GatewayHarness]:
    async with connected_harness(tmp_path, versions=range(2)) as harness:
        yield harness


async def embed(harness: GatewayHarness, input: Any, **changes: Any) -> httpx.Response:
    harness.engine.asked.clear()
    return await harness.http.post(EMBED, json={"model": "intents", "input": input, **changes})


async def test_an_answer(harness: GatewayHarness) -> None:
    answer = await embed(harness, ["hi", "you"], user="ann")
    assert answer.json() == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [2.0, 105.0]},
            {"object": "embedding", "index": 1, "embedding": [3.0, 117.0]},
        ],
        "model": "intents",
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
        "graftwork": {"adapter": "intents@1", "pooling": "mean"},
    }
    assert answer.headers["x-graftwork-adapter"] == "intents@1"
    digest = harness.world.services.registry.resolve("intents").digest
    assert [(r.adapter, r.sampling.pooling, r.sampling.max_tokens) for r in harness.engine.asked] == [
        (digest, "mean", 0)
    ] * 2


@pytest.mark.parametrize(
    ("input", "prompts"),
    [
        ("hi", [b"hi"]),
        (["hi"], [b"hi"]),
        ([104, 105], [b"hi"]),
        ([[104, 105], [33]], [b"hi", b"!"]),
    ],
)
async def test_the_forms_of_inputs(harness: GatewayHarness, input: Any, prompts: list[bytes]) -> None:
    answer = await embed(harness, input, model="tiny-base", pooling="last", dimensions=8, encoding_format="float")
    assert answer.json()["graftwork"] == {"adapter": "tiny-base", "pooling": "last"}
    assert [(bytes(r.prompt), r.adapter, r.sampling.pooling) for r in harness.engine.asked] == [
        (prompt, None, "last") for prompt in prompts
    ]


async def test_base64_is_float32_little_endian(harness: GatewayHarness) -> None:
    (item,) = (await embed(harness, "hi", encoding_format="base64")).json()["data"]
    assert struct.unpack("<2f", base64.b64decode(item["embedding"])) == (2.0, 105.0)


async def test_many_inputs_take_a_part_of_the_queue_at_a_time(harness: GatewayHarness) -> None:
    texts = ["x" * (1 + index % 60) for index in range(100)]
    answer = await embed(harness, texts)
    assert [item["embedding"][0] for item in answer.json()["data"]] == [1 + index % 60 for index in range(100)]
    assert [item["index"] for item in answer.json()["data"]] == list(range(100))
    assert answer.json()["usage"]["total_tokens"] == sum(map(len, texts))
    assert harness.engine.link.num_open() == 0


async def test_with_several_engines_it_is_a_part_of_the_queue_of_one(harness: GatewayHarness) -> None:
    link = harness.engine.link
    harness.embeddings._engine = EnginePool([PoolMember("0", link), PoolMember("1", link)])
    texts = ["x" * (1 + index) for index in range(32)]
    answer = await embed(harness, texts)
    assert [item["embedding"][0] for item in answer.json()["data"]] == [1 + index for index in range(32)]
    assert link.num_open() == 0


async def test_a_full_queue_refuses(harness: GatewayHarness) -> None:
    engine = harness.engine.link
    stall = (b"stall", SamplingParams(max_tokens=1))
    stream = engine.open([stall] * engine.max_open, adapter=None, tenant="local")
    assert error(await embed(harness, "hi"), 429)["code"] == "overloaded"
    engine.cancel(stream)
    assert (await embed(harness, "hi")).status_code == 200


async def test_each_key_has_its_own_prefixes_and_its_share(harness: GatewayHarness) -> None:
    keys = [harness.world.services.keys.create(name, Role.APP) for name in ("one", "other")]
    asked = []
    for secret, _ in keys:
        harness.http.headers["authorization"] = f"Bearer {secret}"
        await embed(harness, ["hi", "you"], pooling="last")
        asked += harness.engine.asked
    assert [request.tenant for request in asked] == [key.id for _, key in keys for _ in range(2)]
    assert len({request.cache_salt for request in asked}) == 2
    harness.embeddings._shares_prefixes = True
    await embed(harness, "hi")
    assert harness.engine.asked[0].cache_salt == ""


async def test_a_queue_that_fills_delays_what_was_accepted(
    harness: GatewayHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_stream, full = harness.engine.link.open, iter([False, True, True, False, True, False])

    def open_or_refuse(*arguments: Any, **options: Any) -> Any:
        if next(full):
            raise Overloaded("The queue is full.")
        return open_stream(*arguments, **options)

    monkeypatch.setattr(harness.engine.link, "open", open_or_refuse)
    assert len((await embed(harness, ["x"] * 20)).json()["data"]) == 20


async def test_nothing_is_logged_and_tokens_are_counted(harness: GatewayHarness) -> None:
    await embed(harness, ["hi", "you"], user="ann")
    assert harness.logged() == []
    assert harness.world.services.traffic.totals("intents@1") == (1, 0)
    text = harness.world.services.metrics.render().decode()
    assert 'graftwork_prompt_tokens_total{adapter="intents"} 5.0' in text


async def test_an_experiment_is_answered_by_its_control(harness: GatewayHarness) -> None:
    plan = {
        "name": "trial",
        "adapter": "intents",
        "arms": [{"version": 2}, {"version": 1, "weight": 0.5}, {"name": "loud", "version": 1, "system": "Shout."}],
        "metric": "thumb",
    }
    assert (await harness.http.post("/v1/experiments", json=plan)).status_code == 201
    for _ in range(8):
        answer = await embed(harness, "hi")
        assert answer.json()["graftwork"] == {"adapter": "intents@2", "pooling": "mean"}
        assert {name for name in answer.headers if name.startswith("x-graftwork")} == {"x-graftwork-adapter"}
    assert (await embed(harness, "hi", model="intents@1")).headers["x-graftwork-adapter"] == "intents@1"
    assert harness.logged() == []


async def test_an_input_that_breaks_is_an_error(harness: GatewayHarness) -> None:
    answer = await embed(harness, ["hi", "fail"])
    assert (answer.status_code, answer.json()["error"]["message"]) == (500, "it broke")
    assert harness.engine.link.num_open() == 0


async def test_the_engine_stops_when_the_client_leaves(harness: GatewayHarness) -> None:
    body = json.dumps({"model": "intents", "input": ["stall", "stall"]}).encode()
    left, messages = asyncio.Event(), iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Any:
        if (message := next(messages, None)) is not None:
            return message
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise AssertionError("nobody is there")

    scope = {
        "type": "http",
        "method": "POST",
        "path": EMBED,
        "raw_path": EMBED.encode(),
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1:8000")],
        "client": ("127.0.0.1", 50000),
        "http_version": "1.1",
        "scheme": "http",
        "server": ("127.0.0.1", 8000),
        "root_path": "",
    }
    answering = asyncio.ensure_future(harness.world.app(scope, receive, send))
    async with asyncio.timeout(10):
        while len(harness.engine.asked) < 2:
            await asyncio.sleep(0.001)
    left.set()
    await answering
    assert sorted(harness.engine.cancelled) == sorted(request.id for request in harness.engine.asked)
    assert harness.engine.link.num_open() == 0


@pytest.mark.parametrize("is_lost", [False, True])
@pytest.mark.parametrize("background", [False, True])
async def test_what_breaks_off_is_charged_unless_a_batch_asks_it_again(
    harness: GatewayHarness, background: bool, is_lost: bool
) -> None:
    body = EmbeddingRequest(model="intents", input=["hi", "stall"])
    active = await harness.embeddings.start(body, key_id="local", background=background)
    collecting = asyncio.ensure_future(harness.embeddings.collect(active))
    await asyncio.sleep(0.01)
    if is_lost:
        harness.engine.link.lose(harness.engine)
    else:
        collecting.cancel()
    (failure,) = await asyncio.gather(collecting, return_exceptions=True)
    assert isinstance(failure, Unavailable if is_lost else asyncio.CancelledError)
    services, requests = harness.world.services, 0 if background else 1
    assert services.limiter.standing("local").today.requests == requests
    assert services.traffic.totals("intents@1") == (requests, 0)


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"input": ["hi", ""]}, "input[1]", "no tokens"),
        ({"input": ["hi", "x" * 65]}, "input[1]", "65 tokens"),
        ({"input": "x" * 65}, "input", "65 tokens"),
        ({"input": [[1], [1, 256]]}, "input[1]", "0 to 255"),
        ({"dimensions": 4}, "dimensions", "Matryoshka"),
        ({"normalize": False}, "normalize", "length 1"),
        ({"model": "intents@9"}, "model", "intents"),
    ],
)
async def test_what_is_refused(harness: GatewayHarness, body: dict[str, Any], param: str, says: str) -> None:
    request = {"model": "intents", "input": "hi", **body}
    answer = await harness.http.post(EMBED, json=request)
    found = error(answer, 404 if param == "model" else 400)
    assert found["param"] == param
    assert says in found["message"]
    assert harness.engine.asked == []


async def test_too_many_tokens_in_all(harness: GatewayHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "MAX_TOKENS", 100)
    found = error(await embed(harness, ["x" * 60, "x" * 60]), 400)
    assert "120 tokens" in found["message"]
    assert len(EmbeddingRequest(model="m", input=["x"] * 2048).input) == 2048
