"""Several vLLM servers as one engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from graftwork.adapters.errors import Unavailable
from graftwork.server.engine.request import SamplingParams
from graftwork.server.processes import SharedState
from graftwork.server.transport.pool import EnginePool, PoolMember
from graftwork.server.transport.vllm import engine as engine_module
from graftwork.server.transport.vllm.engine import VllmEngine
from graftwork.server.transport.vllm.proof import PROOF_TEXT, BaseProof
from graftwork.server.transport.vllm.server import VllmServer
from tests.server.transport.vllm.adapter_folders import BASE, publish
from tests.server.transport.vllm.fake_vllm import FakeVllm

GREEDY = SamplingParams(max_tokens=4, temperature=0.0)
LONG = SamplingParams(max_tokens=50, temperature=0.0)
PROMPT = [5, 6, 7]


class Fleet:
    """Two servers, and the pool of them."""

    def __init__(self, servers: list[FakeVllm], pool: EnginePool) -> None:
        self.servers = servers
        self.pool = pool

    async def tokens(self, adapter: str | None, sampling: SamplingParams = GREEDY) -> list[int]:
        stream = self.pool.open([(PROMPT, sampling)], adapter=adapter)
        return [token async for _, delta in stream for token in delta.token_ids]

    def home_of(self, digest: str) -> tuple[FakeVllm, FakeVllm]:
        """The server that has an adapter, and the other one."""
        one, other = self.servers
        return (one, other) if digest in one.adapters else (other, one)


@pytest.fixture
async def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Fleet]:
    monkeypatch.setattr(engine_module, "WATCH_SECONDS", 0.02)
    state = SharedState(1, 2)
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(FakeVllm().serving()) for _ in range(2)]
        members = []
        for number, server in enumerate(servers):
            engine = VllmEngine(
                VllmServer(server.url),
                BaseProof(server.tokens_of(PROOF_TEXT), None, tmp_path / "first.json"),
                base=BASE,
                adapters=tmp_path,
                shared_state=state,
                max_open=8,
                canary_prompt=PROMPT,
                engine=number,
            )
            members.append(PoolMember(server.url, engine, kind="vllm"))
        pool = EnginePool(members)
        await pool.start(0)
        stack.push_async_callback(pool.stop)
        async with asyncio.timeout(20):
            while not all(member.usable for member in members):
                await asyncio.sleep(0.02)
        yield Fleet(servers, pool)


async def test_an_adapter_lives_on_one_server(fleet: Fleet, tmp_path: Path) -> None:
    digest = publish(tmp_path, 1)
    for _ in range(4):
        await fleet.tokens(digest)
    home, other = fleet.home_of(digest)
    assert (home.loads, other.loads) == ([digest], [])
    await fleet.pool.release(digest)
    assert home.adapters == {}


async def test_what_a_draining_server_did_not_begin_the_other_answers(fleet: Fleet, tmp_path: Path) -> None:
    digest = publish(tmp_path, 1)
    before = await fleet.tokens(digest)
    home, other = fleet.home_of(digest)
    home.switches.draining = True
    assert await fleet.tokens(digest) == before
    assert other.loads == [digest]
    assert fleet.pool.num_open() == 0


async def test_what_it_began_ends_and_the_others_streams_go_on(fleet: Fleet, tmp_path: Path) -> None:
    digest = publish(tmp_path, 1)
    await fleet.tokens(digest)
    home, other = fleet.home_of(digest)
    for seed in range(2, 40):
        if await _home_is(fleet, other_digest := publish(tmp_path, seed), other):
            break
    for server in fleet.servers:
        server.switches.pause = 0.02
    home.switches.breaks_after = 3
    lost, kept = await asyncio.gather(
        fleet.tokens(digest, LONG), fleet.tokens(other_digest, LONG), return_exceptions=True
    )
    assert isinstance(lost, Unavailable)
    assert (lost.code, len(kept) if isinstance(kept, list) else kept) == ("engine_lost", 50)


async def _home_is(fleet: Fleet, digest: str, server: FakeVllm) -> bool:
    await fleet.pool.ensure(digest)
    return digest in server.adapters
