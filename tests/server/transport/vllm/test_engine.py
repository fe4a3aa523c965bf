"""A vLLM server as an engine, against a stand-in with the traps of a real one."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from graftwork.adapters.base.scores import Scores
from graftwork.adapters.errors import GraftworkError, InvalidAdapter, InvalidRequest, Unavailable
from graftwork.server.engine.request import Delta, FinishReason, SamplingParams
from graftwork.server.processes import DRAINING, STOPPING, SharedState
from graftwork.server.transport.engine import EngineStream
from graftwork.server.transport.vllm import engine as engine_module
from graftwork.server.transport.vllm.engine import VllmEngine
from graftwork.server.transport.vllm.proof import PROOF_TEXT, BaseProof, beginnings
from graftwork.server.transport.vllm.server import NotServed, VllmServer
from tests.server.transport.vllm.adapter_folders import BASE, publish
from tests.server.transport.vllm.fake_vllm import FakeVllm, Switches

GREEDY = SamplingParams(max_tokens=4, temperature=0.0)
PROMPT = [5, 6, 7]


@dataclass
class Plane:
    """An engine, the server that it asks, and where adapters are."""

    engine: VllmEngine
    server: FakeVllm
    adapters: Path
    state: SharedState
    home: Path

    async def ready(self) -> Plane:
        await until(lambda: self.engine.state == "ready")
        return self


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def tokens_of(stream: EngineStream) -> list[int]:
    return [token async for _, delta in stream for token in delta.token_ids]


async def deltas_of(stream: EngineStream) -> list[Delta]:
    return [delta async for _, delta in stream]


@dataclass
class Planes:
    """Makes planes, and ends them with the test."""

    tmp: Path
    stack: AsyncExitStack

    async def make(
        self,
        server: FakeVllm | None = None,
        *,
        key: str | None = None,
        known: Scores | None = None,
        adapters: Path | None = None,
        **options: Any,
    ) -> Plane:
        server = server or FakeVllm()
        if not server.url:
            await self.stack.enter_async_context(server.serving())
        state, home = SharedState(1), self.tmp / "home"
        prompt = server.tokens_of(PROOF_TEXT)
        engine = VllmEngine(
            VllmServer(server.url, key),
            BaseProof(prompt, known, home / "engine" / "first.json"),
            base=BASE,
            adapters=adapters or self.tmp / "artifacts",
            shared_state=state,
            canary_prompt=[1, 2, 3],
            **{"max_open": 8, **options},
        )
        await engine.start(0)
        self.stack.push_async_callback(engine.stop)
        return Plane(engine, server, self.tmp / "artifacts", state, home)


@pytest.fixture
async def planes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Planes]:
    monkeypatch.setattr(engine_module, "WATCH_SECONDS", 0.02)
    monkeypatch.setattr(engine_module, "HEALTH_SECONDS", 0.2)
    async with AsyncExitStack() as stack:
        yield Planes(tmp_path, stack)


# -- before it is used -------------------------------------------------------------------------------------------------


def base_scores(server: FakeVllm) -> Scores:
    """What the base of a server says itself."""
    text = server.tokens_of(PROOF_TEXT)
    lasts = [text[length - 1] for length in beginnings(len(text))]
    return [{str(token): server.logprob(0, last, token) for token in server.likeliest(0, last)} for last in lasts]


async def test_a_server_that_holds_this_base_is_used(planes: Planes) -> None:
    plane = await planes.make(known=base_scores(FakeVllm()), max_length=32)
    assert plane.engine.state == "starting"
    with pytest.raises(Unavailable, match="not used"):
        plane.engine.open([(PROMPT, GREEDY)], adapter=None)
    await plane.ready()
    assert plane.engine.base_card == {"engine": "vllm", "version": "0.32.0", "max_length": 32}


@pytest.mark.parametrize(
    ("switches", "why"),
    [
        (Switches(version="0.31.2"), "0.32 is the oldest"),
        (Switches(scale_out=False), "--enable-scale-out"),
        (Switches(updating=False), "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
        (Switches(base=40), "another base"),
        (Switches(key="another"), "--engine-key-file"),
        (Switches(draining=True), "'abort'"),
        (Switches(health=404), "/health, by which it is watched, is refused: it answered 404"),
    ],
)
async def test_one_that_does_not_is_not_and_says_why(planes: Planes, switches: Switches, why: str) -> None:
    plane = await planes.make(FakeVllm(switches=switches), known=base_scores(FakeVllm()), key="mine")
    await until(lambda: "not reached" not in plane.engine._why_out)
    with pytest.raises(Unavailable, match=why) as caught:
        plane.engine.open([(PROMPT, GREEDY)], adapter=None)
    assert caught.value.code == plane.engine.state == "starting"
    assert "mine" not in caught.value.message


async def test_another_tokenizer_is_another_base(planes: Planes, monkeypatch: pytest.MonkeyPatch) -> None:
    server = FakeVllm()
    plane = await planes.make(server)
    monkeypatch.setattr(server, "tokens_of", lambda text: [1, 2, 3])
    await until(lambda: "tokenizer" in plane.engine._why_out)


async def test_a_base_that_was_changed_meanwhile_is_noticed(planes: Planes) -> None:
    plane = await (await planes.make(known=None)).ready()
    plane.server.kill()
    await until(lambda: plane.engine.state == "recovering")
    again = FakeVllm(switches=Switches(base=20))
    await planes.stack.enter_async_context(again.serving(int(plane.server.url.rpartition(":")[2])))
    await until(lambda: "first server" in plane.engine._why_out)
    again.switches.base = 0
    await plane.ready()
    assert plane.engine.num_restarts == 1


async def test_one_that_stands_still_at_the_proof_is_asked_anew(
    planes: Planes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "PROOF_SECONDS", 1.0)
    plane = await planes.make(FakeVllm(switches=Switches(silent=True)))
    await until(lambda: "within 1 seconds" in plane.engine._why_out)
    plane.server.switches.silent = False
    await plane.ready()


async def test_the_key_is_sent(planes: Planes) -> None:
    await (await planes.make(FakeVllm(switches=Switches(key="secret")), key="secret")).ready()


# -- answers -----------------------------------------------------------------------------------------------------------


async def test_a_request_as_it_is_sent(planes: Planes) -> None:
    plane = await (await planes.make()).ready()
    digest = publish(plane.adapters, 1)
    sampling = SamplingParams(max_tokens=4, seed=7, logit_bias={3: 1.5}, top_logprobs=2, stop_token_ids=frozenset({9}))
    await deltas_of(plane.engine.open([(PROMPT, sampling)], adapter=digest, cache_salt="a key/and more"))
    body = plane.server.asked[-1]
    assert (body["model"], body["token_ids"], body["stream"]) == (digest, PROMPT, True)
    assert len(body["cache_salt"]) == 64
    asked = body["sampling_params"]
    assert (asked["seed"], asked["logit_bias"], asked["logprobs"]) == (7, {"3": 1.5}, 3)
    assert (asked["ignore_eos"], asked["stop_token_ids"]) == (True, [9])
    await deltas_of(plane.engine.open([(PROMPT, GREEDY)], adapter=None))
    assert plane.server.asked[-1]["model"] == "base"
    assert "cache_salt" not in plane.server.asked[-1]


async def test_the_stop_token_is_no_part_of_the_answer(planes: Planes) -> None:
    plane = await (await planes.make()).ready()
    tokens = await tokens_of(plane.engine.open([(PROMPT, GREEDY)], adapter=None))
    stop = SamplingParams(max_tokens=4, temperature=0.0, top_logprobs=1, stop_token_ids=frozenset({tokens[2]}))
    *_, last = deltas = await deltas_of(plane.engine.open([(PROMPT, stop)], adapter=None))
    assert [token for delta in deltas for token in delta.token_ids] == tokens[:2]
    assert [score.token_id for delta in deltas for score in delta.logprobs] == tokens[:2]
    assert (last.finish_reason, last.num_cached) == (FinishReason.STOP, 2)


async def test_a_prompt_that_is_only_scored(planes: Planes) -> None:
    plane = await (await planes.make()).ready()
    score = SamplingParams(max_tokens=0, temperature=0.0, prompt_logprobs=0, top_logprobs=0)
    (delta,) = await deltas_of(plane.engine.open([(PROMPT, score)], adapter=None))
    assert (delta.token_ids, delta.logprobs, delta.finish_reason) == ([], [], FinishReason.LENGTH)
    assert delta.prompt_logprobs is not None
    assert [score and score.token_id for score in delta.prompt_logprobs] == [None, 6, 7]


async def test_a_prompt_is_scored_alone(planes: Planes) -> None:
    plane = await (await planes.make(FakeVllm(switches=Switches(pause=0.01)))).ready()
    score = SamplingParams(max_tokens=0, temperature=0.0, prompt_logprobs=0)
    inputs = [(PROMPT, GREEDY), (PROMPT, score), (PROMPT, GREEDY), (PROMPT, score)]
    assert sum(delta.done for delta in await deltas_of(plane.engine.open(inputs, adapter=None))) == 4
    assert not plane.server.dead


async def test_who_leaves_aborts_it_there(planes: Planes) -> None:
    plane = await (await planes.make(FakeVllm(switches=Switches(pause=0.05)))).ready()
    stream = plane.engine.open([(PROMPT, SamplingParams(max_tokens=50))] * 2, adapter=None)
    await until(lambda: plane.server.open == 2)
    plane.engine.cancel(stream, 1)
    assert plane.engine.num_open() == 1
    plane.engine.cancel(stream)
    await until(lambda: plane.server.open == 0)
    assert (plane.engine.num_open(), plane.engine.state) == (0, "ready")


async def test_what_it_does_not_compute_is_refused(planes: Planes) -> None:
    plane = await (await planes.make(FakeVllm(switches=Switches(guidance=False)))).ready()
    with pytest.raises(InvalidRequest, match="embeddings"):
        plane.engine.open([(PROMPT, SamplingParams(max_tokens=0, pooling="mean"))], adapter=None)
    with pytest.raises(InvalidRequest, match=r"--structured-outputs-config\.backend guidance"):
        plane.engine.open([(PROMPT, SamplingParams(max_tokens=4, grammar="start: /a/"))], adapter=None)
    with pytest.raises(InvalidRequest, match="out of vocabulary"):
        await deltas_of(plane.engine.open([([999], GREEDY)], adapter=None))
    assert (plane.engine.state, plane.engine.num_open()) == ("ready", 0)


# -- failures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trap", "begun", "state"),
    [
        ({"draining": True}, 0, "recovering"),
        ({"dies_after": 2}, 2, "recovering"),
        ({"dies_after": 0}, 0, "recovering"),
        ({"done_after": 1}, 1, "recovering"),
        ({"breaks_after": 2}, 2, "recovering"),
        ({"queue": 0}, 0, "ready"),
        ({"fails_after": 2}, 2, "ready"),
    ],
)
async def test_what_is_not_served_ends_with_an_error(
    planes: Planes, trap: dict[str, Any], begun: int, state: str
) -> None:
    plane = await (await planes.make()).ready()
    for name, value in trap.items():
        setattr(plane.server.switches, name, value)
    got: list[int] = []

    async def take() -> None:
        async for _, delta in plane.engine.open([(PROMPT, GREEDY)], adapter=None):
            assert not delta.done
            got.extend(delta.token_ids)

    with pytest.raises(Unavailable) as caught:
        await take()
    assert (len(got), caught.value.code, plane.engine.num_open()) == (begun, "engine_lost", 0)
    if state == "ready":
        await asyncio.sleep(0.1)
        assert (plane.engine.state, plane.engine.num_restarts) == ("ready", 0)
    else:
        await until(lambda: plane.engine.state == state)


@pytest.mark.parametrize(
    "sampling", [GREEDY, SamplingParams(max_tokens=0, temperature=0.0, prompt_logprobs=0)], ids=["streamed", "whole"]
)
async def test_a_connection_that_was_closed_as_unused_costs_nothing(planes: Planes, sampling: SamplingParams) -> None:
    plane = await (await planes.make()).ready()
    plane.server.asked.clear()
    plane.server.switches.cuts = 1
    *_, last = await deltas_of(plane.engine.open([(PROMPT, sampling)], adapter=None))
    assert last.done
    assert plane.server.asked[0] == plane.server.asked[1]
    assert (len(plane.server.asked), plane.engine.state, plane.engine.num_restarts) == (2, "ready", 0)


async def test_after_a_restart_the_adapter_is_loaded_again(planes: Planes) -> None:
    plane = await (await planes.make()).ready()
    digest = publish(plane.adapters, 1)
    before = await tokens_of(plane.engine.open([(PROMPT, GREEDY)], adapter=digest))
    plane.server.adapters.clear()
    assert await tokens_of(plane.engine.open([(PROMPT, GREEDY)], adapter=digest)) == before
    assert plane.server.loads == [digest] * 2


async def test_a_server_that_stands_still_loses_its_streams(planes: Planes) -> None:
    plane = await (await planes.make(FakeVllm(switches=Switches(pause=0.05)), stall_seconds=0.5)).ready()
    stream = plane.engine.open([(PROMPT, SamplingParams(max_tokens=1000))], adapter=None)
    await until(lambda: plane.server.open == 1)
    plane.server.switches.silent = True
    with pytest.raises(Unavailable, match="stopped while"):
        await deltas_of(stream)
    plane.server.switches.silent = False
    await plane.ready()


async def test_a_host_that_vanishes_loses_its_streams(planes: Planes, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot be reached, and yet its connections stay open, as nothing comes that would close them."""
    plane = await (await planes.make(FakeVllm(switches=Switches(pause=60)), stall_seconds=0.5)).ready()
    stream = plane.engine.open([(PROMPT, GREEDY)], adapter=None)
    await until(lambda: plane.server.open == 1)

    async def get(path: str, *, seconds: float = 0) -> httpx.Response:
        if path == "/version":
            await asyncio.Event().wait()  # the proof hangs
        raise NotServed("it cannot be reached")

    with monkeypatch.context() as vanished:
        vanished.setattr(plane.engine._server, "get", get)
        with pytest.raises(Unavailable, match="stopped while"):
            await asyncio.wait_for(deltas_of(stream), 10)
        assert (plane.engine.state, plane.engine.num_open()) == ("recovering", 0)


async def test_answers_that_come_outlive_the_loss_of_their_server(planes: Planes) -> None:
    """Its connections broke for one answer, not for all; and it may not prove itself while it is full."""
    plane = await (await planes.make(FakeVllm(switches=Switches(pause=0.05)), stall_seconds=0.3)).ready()
    stream = plane.engine.open([(PROMPT, SamplingParams(max_tokens=20))], adapter=None)
    await until(lambda: plane.server.open == 1)
    plane.server.switches.version = "0.31"
    plane.engine._lose("a connection broke")
    assert len(await tokens_of(stream)) == 20
    assert plane.engine.state == "recovering"


async def test_one_that_is_only_slow_is_kept(planes: Planes) -> None:
    plane = await (await planes.make(stall_seconds=60)).ready()
    plane.server.switches.silent = True
    await asyncio.sleep(0.6)
    assert plane.engine.state == "ready"
    plane.server.switches.silent = False


async def test_when_this_server_stops(planes: Planes) -> None:
    plane = await (await planes.make(FakeVllm(switches=Switches(pause=0.05)))).ready()
    stream = plane.engine.open([(PROMPT, SamplingParams(max_tokens=1000))], adapter=None)
    plane.state.phase = DRAINING
    with pytest.raises(Unavailable, match="shutting down"):
        plane.engine.open([(PROMPT, GREEDY)], adapter=None)
    assert (plane.engine.state, plane.engine.num_open()) == ("draining", 1)
    plane.state.phase = STOPPING
    with pytest.raises(Unavailable, match="shutting down"):
        await deltas_of(stream)


# -- adapters ----------------------------------------------------------------------------------------------------------


async def test_many_at_once_load_an_adapter_once(planes: Planes) -> None:
    plane = await (await planes.make()).ready()
    digest = publish(plane.adapters, 1)
    answers = [tokens_of(plane.engine.open([(PROMPT, GREEDY)], adapter=digest)) for _ in range(8)]
    assert len({tuple(answer) for answer in await asyncio.gather(*answers)}) == 1
    assert plane.server.loads == [digest]
    assert Path(plane.server.adapters[digest]).name == digest.removeprefix("sha256:")


async def test_one_that_is_loaded_already_is_taken_as_it_is(planes: Planes) -> None:
    plane = await (await planes.make()).ready()
    digest = publish(plane.adapters, 1)
    await plane.engine.ensure(digest)
    plane.engine._adapters.forget()
    await plane.engine.ensure(digest)
    assert plane.server.loads == [digest] * 2
    assert (await plane.engine.residency())[digest].tier == "device"
    assert (await plane.engine.stats()).num_loads == 2


async def test_its_host_sees_the_folder_elsewhere(planes: Planes, tmp_path: Path) -> None:
    plane = await (await planes.make(adapters=tmp_path / "mounted")).ready()
    digest = publish(plane.adapters, 1)
    with pytest.raises(Unavailable, match="--engine-adapters"):
        await plane.engine.ensure(digest)
    shutil.copytree(plane.adapters, tmp_path / "mounted")
    await plane.engine.ensure(digest)
    assert plane.server.adapters[digest] == str(tmp_path / "mounted" / digest.removeprefix("sha256:"))


async def test_the_canary(planes: Planes) -> None:
    plane = await (await planes.make()).ready()
    await plane.engine.canary(publish(plane.adapters, 1))
    with pytest.raises(InvalidAdapter) as caught:
        await plane.engine.canary(publish(plane.adapters, 2, b=0.0))
    assert caught.value.code == "inert_adapter"
    with pytest.raises(InvalidAdapter, match="--max-lora-rank 32") as caught:
        await plane.engine.canary(publish(plane.adapters, 3, rank=32))
    assert caught.value.param == "r"
    with pytest.raises(InvalidAdapter, match="not finite"):
        await plane.engine.canary(publish(plane.adapters, 4, b=float("nan")))
    assert plane.engine.state == "ready"


async def test_an_adapter_is_released_after_its_last_request(planes: Planes) -> None:
    plane = await (await planes.make(FakeVllm(switches=Switches(pause=0.02)))).ready()
    digest = publish(plane.adapters, 1)
    stream = plane.engine.open([(PROMPT, SamplingParams(max_tokens=20))], adapter=digest)
    await until(lambda: plane.server.open == 1)
    release = asyncio.create_task(plane.engine.release(digest))
    await asyncio.sleep(0.05)
    assert digest in plane.server.adapters
    assert len(await tokens_of(stream)) == 20
    await release
    assert digest not in plane.server.adapters
    await plane.engine.release(digest)  # it may be said twice


async def test_a_folder_stays_while_it_is_not_known_whether_it_is_needed(planes: Planes) -> None:
    plane = await (await planes.make()).ready()
    digest = publish(plane.adapters, 1)
    await plane.engine.ensure(digest)
    plane.server.kill()
    with pytest.raises(Unavailable, match="may still know"):
        await plane.engine.release(digest)


async def test_a_folder_that_is_gone_ends_the_server(planes: Planes) -> None:
    """The trap that ``release`` is there for."""
    plane = await (await planes.make()).ready()
    digest = publish(plane.adapters, 1)
    await plane.engine.ensure(digest)
    shutil.rmtree(plane.adapters)
    plane.server.resident.clear()
    with pytest.raises(GraftworkError):
        await deltas_of(plane.engine.open([(PROMPT, GREEDY)], adapter=digest))
    assert plane.server.dead


async def test_its_statistics(planes: Planes) -> None:
    plane = await (await planes.make()).ready()
    stats = await plane.engine.stats()
    assert (stats.running, stats.waiting, stats.num_steps, stats.num_preemptions) == (0, 2, 6, 1)
    assert (stats.cache_tokens_used, stats.num_prompt_tokens, stats.num_cached_tokens) == (11648, 50, 20)
    plane.server.kill()
    await until(lambda: plane.engine.state == "recovering")
    with pytest.raises(Unavailable):
        await plane.engine.stats()
    assert await plane.engine.residency() == {}


@pytest.mark.parametrize(
    "line",
    [
        "vllm:num_requests_running None",
        "vllm:num_requests_running NaN",
        "vllm:num_requests_running +Inf",
        "vllm:lora_requests_info 1.0",
        'vllm:lora_requests_info{max_lora="4"} 1.0',
    ],
)
async def test_statistics_that_cannot_be_read(planes: Planes, line: str) -> None:
    plane = await (await planes.make(FakeVllm(switches=Switches(metrics=line + "\n")))).ready()
    with pytest.raises(Unavailable, match="metrics cannot be read"):
        await plane.engine.stats()


async def test_a_proxy_whose_server_is_gone(planes: Planes) -> None:
    plane = await (await planes.make()).ready()
    plane.server.switches.health = 404
    await until(lambda: plane.engine.state == "recovering")
    plane.server.switches.health = 200
    await plane.ready()


async def test_a_lost_server_is_found_out_without_a_request(planes: Planes) -> None:
    plane = await (await planes.make()).ready()
    began = time.monotonic()
    plane.server.dead = True
    await until(lambda: plane.engine.state == "recovering")
    assert time.monotonic() - began < 10
