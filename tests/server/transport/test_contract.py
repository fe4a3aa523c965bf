"""What every engine keeps to, tried on this server's own worker and on a vLLM server's stand-in."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.errors import InvalidAdapter, InvalidRequest, Overloaded, Unavailable
from graftwork.adapters.peft_format.folder import read_spec
from graftwork.adapters.peft_format.limits import AdapterLimits
from graftwork.server.engine.request import Delta, FinishReason, SamplingParams
from graftwork.server.processes import DRAINING, SERVING, SharedState
from graftwork.server.transport.client import EngineClient
from graftwork.server.transport.engine import EngineProtocol
from graftwork.server.transport.vllm.engine import VllmEngine
from graftwork.server.transport.vllm.proof import PROOF_TEXT, BaseProof
from graftwork.server.transport.vllm.server import VllmServer
from graftwork.server.transport.worker import EngineAPI, LitEngineLoop, StepLoop, WorkerConfig
from tests.server.transport.vllm.adapter_folders import BASE, publish
from tests.server.transport.vllm.fake_vllm import FakeVllm, Switches

pytestmark = pytest.mark.asyncio(loop_scope="module")

GREEDY = SamplingParams(max_tokens=6, temperature=0.0)
LONG = SamplingParams(max_tokens=40, temperature=0.0)
PROMPT = [5, 6, 7, 8]
MAX_OPEN = 6


@dataclass(frozen=True)
class Subject:
    """An engine that is ready, and adapters that it can find."""

    engine: EngineProtocol
    state: SharedState
    adapters: tuple[str, str]
    inert: str

    async def ask(
        self, sampling: SamplingParams = GREEDY, adapter: str | None = None, prompt: list[int] = PROMPT
    ) -> list[Delta]:
        return [delta async for _, delta in self.engine.open([(prompt, sampling)], adapter=adapter)]

    async def tokens(self, sampling: SamplingParams = GREEDY, adapter: str | None = None) -> list[int]:
        return [token for delta in await self.ask(sampling, adapter) for token in delta.token_ids]


async def ready(engine: EngineProtocol) -> None:
    async with asyncio.timeout(60):
        while engine.state != "ready":
            await asyncio.sleep(0.02)


@asynccontextmanager
async def vllm(folder: Path, tiny_base: BaseInfo) -> AsyncIterator[Subject]:
    async with FakeVllm(switches=Switches(pause=0.01)).serving() as server:
        state = SharedState(1)
        engine = VllmEngine(
            VllmServer(server.url),
            BaseProof(server.tokens_of(PROOF_TEXT), None, folder / "first.json"),
            base=BASE,
            adapters=folder,
            shared_state=state,
            max_open=MAX_OPEN,
            canary_prompt=PROMPT,
        )
        await engine.start(0)
        await ready(engine)
        yield Subject(engine, state, (publish(folder, 1), publish(folder, 2)), publish(folder, 3, b=0.0))
        await engine.stop()


@asynccontextmanager
async def own(folder: Path, tiny_base: BaseInfo) -> AsyncIterator[Subject]:
    """The real worker, in a thread of this process that ends with it."""
    from tests.engine import zoo

    def digest_of(seed: int, strength: float) -> str:
        zoo.make_adapter(tiny_base, folder / "made", {"r": 2, "target_modules": ["q_proj"]}, seed, strength)
        digest = read_spec(folder / "made", tiny_base, AdapterLimits()).digest
        (folder / "made").rename(folder / digest.removeprefix("sha256:"))
        return digest

    state, listener = SharedState(1), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(f"\0graftwork-contract-{os.getpid()}")
    listener.listen()
    client = EngineClient(state, max_open=MAX_OPEN, canary_prompt=PROMPT, listeners=[listener])
    await client.start(0)
    options = {"quantize": "none", "dtype": "float32", "device": "cpu", "kernels": "torch", "cache_bytes": 16 << 20}
    worker = WorkerConfig(
        base=tiny_base,
        artifacts=folder,
        adapter_limits=AdapterLimits(),
        engine=options,
        api_addresses=(listener.getsockname().decode(),),
        shared_state=state,
        number=0,
        parent_pid=os.getpid(),
        log_level="error",
    )
    api = EngineAPI(worker, loop=LitEngineLoop())
    await asyncio.to_thread(api._build)
    threading.Thread(target=lambda: StepLoop(api).run(), daemon=True).start()
    await ready(client)
    yield Subject(client, state, (digest_of(1, 0.5), digest_of(2, 0.5)), digest_of(3, 0.0))
    await client.stop()
    client._server.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[own, vllm], ids=["own", "vllm"])
async def subject(
    request: pytest.FixtureRequest, tiny_base: BaseInfo, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Subject]:
    async with request.param(tmp_path_factory.mktemp("artifacts"), tiny_base) as subject:
        yield subject


async def test_an_answer_ends_once_and_says_why(subject: Subject) -> None:
    *before, last = await subject.ask()
    assert (last.finish_reason, [delta.done for delta in before]) == (FinishReason.LENGTH, [False] * len(before))
    assert len([token for delta in (*before, last) for token in delta.token_ids]) == 6
    assert subject.engine.num_open() == 0


async def test_the_stop_token_is_not_in_it(subject: Subject) -> None:
    tokens = await subject.tokens()
    stop = replace(GREEDY, stop_token_ids=frozenset({tokens[-1]}))
    *_, last = deltas = await subject.ask(stop)
    place = tokens.index(tokens[-1])
    assert [token for delta in deltas for token in delta.token_ids] == tokens[:place]
    assert last.finish_reason is FinishReason.STOP


async def test_adapters_answer_beside_one_another_as_they_do_alone(subject: Subject) -> None:
    who = [None, *subject.adapters]
    alone = [await subject.tokens(adapter=adapter) for adapter in who]
    assert len({tuple(tokens) for tokens in alone}) == 3
    assert await asyncio.gather(*(subject.tokens(adapter=adapter) for adapter in who)) == alone


async def test_choices_are_told_apart(subject: Subject) -> None:
    stream = subject.engine.open([(PROMPT, GREEDY), (PROMPT[:2], replace(GREEDY, max_tokens=2))], adapter=None)
    tokens: dict[int, list[int]] = {0: [], 1: []}
    async for choice, delta in stream:
        tokens[choice] += delta.token_ids
    assert (tokens[0], len(tokens[1])) == (await subject.tokens(), 2)


async def test_every_token_has_its_score_and_alternatives_best_first(subject: Subject) -> None:
    deltas = await subject.ask(replace(GREEDY, top_logprobs=2))
    scores = [score for delta in deltas for score in delta.logprobs]
    assert [score.token_id for score in scores] == [token for delta in deltas for token in delta.token_ids]
    for score in scores:
        (first, best), (_, second) = score.top
        assert (first, best) == (score.token_id, score.logprob)
        assert best >= second


async def test_a_prompt_is_scored_from_its_second_token_on(subject: Subject) -> None:
    (*_, last) = deltas = await subject.ask(SamplingParams(max_tokens=0, temperature=0.0, prompt_logprobs=1))
    scores = [score for delta in deltas for score in delta.prompt_logprobs or []]
    assert [score and score.token_id for score in scores] == [None, *PROMPT[1:]]
    assert all(len(score.top) == 1 and score.top[0][1] >= score.logprob for score in scores if score)
    assert (last.finish_reason, [delta.token_ids for delta in deltas]) == (FinishReason.LENGTH, [[]] * len(deltas))


async def test_what_is_cancelled_is_open_no_longer(subject: Subject) -> None:
    stream = subject.engine.open([(PROMPT, LONG)] * 3, adapter=None)
    assert subject.engine.num_open() == 3
    subject.engine.cancel(stream, 1)
    subject.engine.cancel(stream, 1)
    assert subject.engine.num_open() == 2
    subject.engine.cancel(stream)
    assert subject.engine.num_open() == 0
    assert len(await subject.tokens()) == 6


async def test_a_full_queue(subject: Subject) -> None:
    with pytest.raises(InvalidRequest):
        subject.engine.open([(PROMPT, LONG)] * (MAX_OPEN + 1), adapter=None)
    background = subject.engine.open([(PROMPT, LONG)] * MAX_OPEN, adapter=None, background=True)
    users = subject.engine.open([(PROMPT, LONG)] * MAX_OPEN, adapter=None, tenant="a")
    assert (subject.engine.num_open(), subject.engine.num_background()) == (2 * MAX_OPEN, MAX_OPEN)
    with pytest.raises(Overloaded):
        subject.engine.open([(PROMPT, LONG)], adapter=None, tenant="a")
    other = subject.engine.open([(PROMPT, LONG)], adapter=None, tenant="b")
    for stream in (background, users, other):
        subject.engine.cancel(stream)
    assert subject.engine.num_open() == 0


async def test_the_canary_tells_an_adapter_from_none(subject: Subject) -> None:
    await subject.engine.canary(subject.adapters[0])
    with pytest.raises(InvalidAdapter) as caught:
        await subject.engine.canary(subject.inert)
    assert caught.value.code == "inert_adapter"
    await subject.engine.release(subject.inert)


async def test_an_adapter_is_there_before_it_is_asked_for(subject: Subject) -> None:
    await subject.engine.ensure(subject.adapters[1])
    assert (await subject.engine.residency())[subject.adapters[1]].tier in ("device", "host")


async def test_it_says_how_it_is(subject: Subject) -> None:
    stats = await subject.engine.stats()
    assert stats.num_steps > 0
    assert stats.memory_bytes > 0
    assert subject.engine.base_card["max_length"] > 0


async def test_a_server_that_stops_takes_nothing_more(subject: Subject) -> None:
    subject.state.phase = DRAINING
    try:
        assert subject.engine.state == "draining"
        with pytest.raises(Unavailable):
            subject.engine.open([(PROMPT, GREEDY)], adapter=None)
    finally:
        subject.state.phase = SERVING
