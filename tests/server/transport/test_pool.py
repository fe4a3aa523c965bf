"""The pool with scripted engines: where requests go, and what becomes of them when engines are lost."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from graftwork.adapters.errors import InvalidAdapter, InvalidRequest, Overloaded, Unavailable
from graftwork.adapters.peft_format.spec import AdapterSpec
from graftwork.server.engine.request import Delta, FinishReason, SamplingParams
from graftwork.server.transport import pool as pool_module
from graftwork.server.transport.engine import EngineInput, EngineState, EngineStream
from graftwork.server.transport.pool import EnginePool, PoolMember, members_of, residents_of
from tests.server.fakes import Placement, Stats

SEEDED = SamplingParams(max_tokens=4, seed=7)
INPUT: EngineInput = ([1, 2, 3], SEEDED)


@dataclass
class Scripted:
    """An engine that does what the test tells it."""

    state: EngineState = "ready"
    num_restarts: int = 0
    max_open: int = 8
    base_card: Mapping[str, Any] = field(default_factory=dict)
    adapters: dict[str, Placement] = field(default_factory=dict)
    measured: Stats = field(default_factory=Stats)
    busy: bool = False
    streams: list[EngineStream] = field(default_factory=list)
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    cancelled: list[tuple[EngineStream, int | None]] = field(default_factory=list)
    tried: list[str] = field(default_factory=list)
    ensured: list[str] = field(default_factory=list)
    untaken: bool = False

    @property
    def max_choices(self) -> int:
        return self.max_open

    def num_open(self) -> int:
        return sum(len(stream.open) for stream in self.streams)

    def num_background(self) -> int:
        return sum(len(stream.open) for stream in self.streams if stream.background)

    def open(
        self,
        inputs: Sequence[EngineInput],
        /,
        *,
        adapter: str | None,
        cache_salt: str = "",
        background: bool = False,
        tenant: str = "",
        weight: float = 1.0,
    ) -> EngineStream:
        if self.state != "ready":
            raise Unavailable("not ready")
        if len(inputs) > self.max_open:
            raise InvalidRequest("too many")
        if self.num_open() + len(inputs) > self.max_open:
            raise Overloaded("full")
        stream = EngineStream([f"{id(self)}-{len(self.asked)}-{n}" for n in range(len(inputs))], background)
        stream.open.update(stream.ids)
        self.streams.append(stream)
        self.asked.append((inputs, adapter, cache_salt, background, tenant, weight))
        return stream

    def say(self, *tokens: int, choice: int = 0, stream: int = -1, end: bool = False) -> None:
        source = self.streams[stream]
        reason = FinishReason.STOP if end else None
        source.items.put_nowait((choice, Delta(source.ids[choice], list(tokens), finish_reason=reason)))
        if end:
            source.open.discard(source.ids[choice])

    def die(self, state: EngineState = "recovering") -> None:
        self.state = state
        for stream in self.streams:
            if stream.open:
                stream.open.clear()
                stream.items.put_nowait(Unavailable("The engine stopped.", code="engine_lost"))

    def cancel(self, stream: EngineStream, choice: int | None = None, /) -> None:
        self.cancelled.append((stream, choice))
        stream.open.difference_update(stream.ids if choice is None else [stream.ids[choice]])

    def takes(self, spec: AdapterSpec, /) -> None:
        if self.untaken:
            raise InvalidAdapter("not this one")

    async def canary(self, digest: str, /) -> None:
        self.tried.append(digest)

    async def ensure(self, digest: str, /) -> None:
        self.ensured.append(digest)

    async def residency(self) -> Mapping[str, Placement]:
        if self.busy:
            raise Unavailable("busy", code="busy")
        return self.adapters

    async def stats(self) -> Stats:
        if self.busy:
            raise Unavailable("busy", code="busy")
        return self.measured


@pytest.fixture
def engines() -> list[Scripted]:
    return [Scripted(), Scripted(), Scripted()]


@pytest.fixture
def pool(engines: list[Scripted]) -> EnginePool:
    return EnginePool([PoolMember(str(number), engine) for number, engine in enumerate(engines)])


def owner(engines: list[Scripted]) -> Scripted:
    """The engine that was asked last."""
    (one,) = [engine for engine in engines if any(stream.open for stream in engine.streams)]
    return one


async def tokens_of(stream: EngineStream) -> list[int]:
    return [token async for _, delta in stream for token in delta.token_ids]


async def test_an_adapter_stays_on_its_engine(pool: EnginePool, engines: list[Scripted]) -> None:
    for _ in range(5):
        stream = pool.open([INPUT], adapter="a", cache_salt="s", background=True, tenant="key", weight=2.0)
        owner(engines).say(1, end=True)
        assert await tokens_of(stream) == [1]
        pool.cancel(stream)
    (busy,) = [engine for engine in engines if engine.asked]
    assert busy.asked == [([INPUT], "a", "s", True, "key", 2.0)] * 5
    assert pool.num_open() == 0
    assert not pool._num_open


async def test_requests_for_the_base_go_where_the_load_is_least(pool: EnginePool, engines: list[Scripted]) -> None:
    for number in range(9):
        pool.open([([number], SEEDED)], adapter=None)
    assert max(engine.num_open() for engine in engines) <= 4
    assert pool.num_open() == 9


async def test_before_the_first_token_another_engine_takes_over_once(pool: EnginePool, engines: list[Scripted]) -> None:
    stream = pool.open([INPUT], adapter="a", cache_salt="s")
    first = owner(engines)
    answer = asyncio.ensure_future(tokens_of(stream))
    await asyncio.sleep(0)
    first.die()
    await asyncio.sleep(0.01)
    second = owner(engines)
    assert second is not first
    assert second.asked == first.asked == [([INPUT], "a", "s", False, "", 1.0)]  # the seed is the same
    second.say(5, 6, end=True)
    assert await answer == [5, 6]
    pool.cancel(stream)
    assert pool.num_open() == 0
    assert sum(len(engine.asked) for engine in engines) == 2


async def test_it_is_taken_over_once_only(pool: EnginePool, engines: list[Scripted]) -> None:
    stream = pool.open([INPUT], adapter="a")
    answer = asyncio.ensure_future(tokens_of(stream))
    for _ in range(2):
        await asyncio.sleep(0.01)
        owner(engines).die()
    with pytest.raises(Unavailable, match="stopped"):
        await answer
    assert sum(len(engine.asked) for engine in engines) == 2


async def test_after_the_first_token_the_error_comes_at_once_and_no_token_twice(
    pool: EnginePool, engines: list[Scripted]
) -> None:
    stream = pool.open([INPUT, INPUT], adapter="a")
    first = owner(engines)
    first.say(5, choice=1)
    got = []
    first_delta = asyncio.Event()

    async def read() -> None:
        async for choice, delta in stream:
            got.append((choice, delta.token_ids))
            first_delta.set()

    reading = asyncio.ensure_future(read())
    await first_delta.wait()
    first.die()
    with pytest.raises(Unavailable) as error:
        await reading
    assert error.value.code == "engine_lost"
    assert got == [(1, [5])]
    assert sum(len(engine.asked) for engine in engines) == 1
    assert not pool._num_open


async def test_without_another_engine_the_error_comes_at_once(engines: list[Scripted]) -> None:
    pool = EnginePool([PoolMember("only", engines[0])])
    stream = pool.open([INPUT], adapter=None)
    engines[0].die()
    with pytest.raises(Unavailable, match="stopped"):
        await tokens_of(stream)


async def test_a_request_that_is_over_is_not_taken_over(pool: EnginePool, engines: list[Scripted]) -> None:
    stream = pool.open([INPUT], adapter="a")
    source = owner(engines).streams[0]
    pool.cancel(stream)
    source.items.put_nowait(Unavailable("The engine stopped.", code="engine_lost"))
    with pytest.raises(Unavailable):
        await tokens_of(stream)
    assert sum(len(engine.asked) for engine in engines) == 1


async def test_a_cancelled_choice_stays_cancelled_on_another_engine(pool: EnginePool, engines: list[Scripted]) -> None:
    stream = pool.open([INPUT, INPUT], adapter="a")
    first = owner(engines)
    pool.cancel(stream, 1)
    answer = asyncio.ensure_future(anext(aiter(stream)))
    await asyncio.sleep(0)
    first.die()
    await asyncio.sleep(0.01)
    second = owner(engines)
    assert second.cancelled == [(second.streams[0], 1)]
    second.say(9)
    assert (await answer)[1].token_ids == [9]
    pool.cancel(stream)


async def test_lost_and_draining_engines_get_nothing_and_drains_finish(
    pool: EnginePool, engines: list[Scripted]
) -> None:
    lost, draining, left = engines
    lost.state = "recovering"
    running = [pool.open([([number], SEEDED)], adapter=None) for number in range(6)]
    num_running = draining.num_open()
    assert (lost.num_open(), num_running + left.num_open()) == (0, 6)
    assert num_running > 0
    drained = asyncio.ensure_future(pool.drain("1"))
    await asyncio.sleep(0)
    more = pool.open([INPUT], adapter="a")
    assert (draining.num_open(), left.num_open()) == (num_running, 7 - num_running)
    assert not drained.done()
    for stream in range(num_running):
        draining.say(1, stream=stream, end=True)
    await drained
    assert (pool.state, len(draining.asked)) == ("ready", num_running)
    left.die()
    assert pool.state == "recovering"
    with pytest.raises(Unavailable, match="being started again"):
        pool.open([INPUT], adapter=None)
    pool.resume("1")
    assert pool.state == "ready"
    for stream in [*running, more]:
        pool.cancel(stream)


@pytest.mark.parametrize(
    ("states", "state"),
    [
        (["starting", "ready", "recovering"], "ready"),
        (["starting", "starting", "recovering"], "recovering"),
        (["starting", "starting", "starting"], "starting"),
        (["draining", "draining", "draining"], "draining"),
    ],
)
async def test_ready_while_one_is(
    pool: EnginePool, engines: list[Scripted], states: list[EngineState], state: EngineState
) -> None:
    for engine, its in zip(engines, states, strict=True):
        engine.state = its
    assert pool.state == state


async def test_full_engines(pool: EnginePool, engines: list[Scripted]) -> None:
    for engine in engines:
        engine.max_open = 2
    assert (pool.max_open, pool.max_choices) == (6, 2)
    for _ in range(6):
        pool.open([INPUT], adapter="hot")
    with pytest.raises(Overloaded, match="6 answers"):
        pool.open([INPUT], adapter="hot")
    with pytest.raises(InvalidRequest, match="asks for 3 answers"):
        pool.open([INPUT] * 3, adapter=None)


async def test_who_is_too_busy_to_say_what_it_has_is_not_left_out(pool: EnginePool, engines: list[Scripted]) -> None:
    one, two, _ = engines
    one.adapters, two.adapters = {"a": Placement("host")}, {"b": Placement("device")}
    assert await residents_of(pool) == {"a", "b"}
    two.busy = True
    assert await pool.residency() == {"a": Placement("host")}
    with pytest.raises(Unavailable, match="busy"):
        await residents_of(pool)
    two.die()
    assert await residents_of(pool) == {"a"}


async def test_numbers_are_summed_and_places_merged(pool: EnginePool, engines: list[Scripted]) -> None:
    one, two, three = engines
    one.num_restarts, two.num_restarts = 2, 1
    one.base_card, two.base_card = {"device": "cuda:0", "memory_bytes": 5, "max_length": 64}, {}
    assert pool.base_card == one.base_card
    two.base_card = {"device": "cuda:1", "memory_bytes": 6, "max_length": 32}
    assert pool.base_card == {"device": "cuda:0", "memory_bytes": 11, "max_length": 32}
    assert pool.num_restarts == 3
    one.adapters, two.adapters = {"a": Placement("host", 1.0), "b": Placement("store")}, {"a": Placement("device", 2.0)}
    assert await pool.residency() == {"a": Placement("device", 2.0), "b": Placement("store")}
    two.measured = replace(two.measured, running=5, num_steps=7)
    three.busy = True
    stats = await pool.stats()
    assert (stats.running, stats.num_steps, stats.memory_bytes) == (7, 17, 2000)
    one.busy = two.busy = True
    with pytest.raises(Unavailable, match="busy"):
        await pool.stats()
    assert list(members_of(pool)) == ["0", "1", "2"]
    assert members_of(one) == {"0": one}


async def test_what_others_have_computed_counts_as_load(pool: EnginePool, engines: list[Scripted]) -> None:
    engines[0].measured = replace(Stats(), running=6, waiting=0)
    for engine in engines[1:]:
        engine.measured = replace(Stats(), running=0, waiting=0)
    watching = asyncio.ensure_future(pool.watch())
    await asyncio.sleep(0.01)
    for number in range(6):
        pool.open([([number], SEEDED)], adapter=None)
    assert engines[0].num_open() == 0
    watching.cancel()


async def test_an_engine_that_fails_to_say_what_it_computes_ends_no_watch(
    pool: EnginePool, engines: list[Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "WATCH_SECONDS", 0.01)

    async def stats() -> Stats:
        raise ValueError("no number")

    with monkeypatch.context() as broken:
        broken.setattr(engines[0], "stats", stats)
        watching = asyncio.ensure_future(pool.watch())
        await asyncio.sleep(0.05)
        assert not watching.done()
        assert [member.num_foreign for member in pool.members] == [0, 3, 3]
    await asyncio.sleep(0.05)
    assert [member.num_foreign for member in pool.members] == [3, 3, 3]
    watching.cancel()


async def test_an_adapter_is_tried_on_each_kind_where_its_requests_go_first() -> None:
    engines = [Scripted() for _ in range(6)]
    pool = EnginePool(
        [PoolMember(str(number), engine, "own" if number < 3 else "vllm") for number, engine in enumerate(engines)]
    )
    for digest in map(str, range(20)):
        await pool.canary(digest)
        await pool.ensure(digest)
        for half in (engines[:3], engines[3:]):
            assert sum(digest in engine.tried for engine in half) == 1
        pool.open([INPUT], adapter=digest)
        (home,) = [engine for engine in engines if digest in engine.ensured]
        assert home.asked[-1][1] == digest
        home.streams[-1].open.clear()
    for engine in engines[3:]:
        engine.state = "starting"
    with pytest.raises(Unavailable, match="vllm"):
        await pool.canary("b")
    engines[4].untaken = True
    spec: Any = None
    EnginePool([PoolMember("0", engines[0]), PoolMember("4", engines[5])]).takes(spec)
    with pytest.raises(InvalidAdapter):
        EnginePool([PoolMember("0", engines[0]), PoolMember("4", engines[4], "vllm")]).takes(spec)


@pytest.mark.parametrize("names", [[], ["a", "a"]])
def test_pools_that_cannot_be(names: list[str]) -> None:
    with pytest.raises(ValueError, match=r"needs an engine|one name"):
        EnginePool([PoolMember(name, Scripted()) for name in names])


@pytest.mark.parametrize("deaths", list(itertools.product([0, 1, 2], repeat=2)))
async def test_whenever_engines_die_every_token_comes_once(deaths: tuple[int, int]) -> None:
    """Each of two engines in turn dies after so many tokens; the third lives."""
    engines = [Scripted(), Scripted(), Scripted()]
    pool = EnginePool([PoolMember(str(number), engine) for number, engine in enumerate(engines)])
    stream = pool.open([INPUT], adapter="a")
    got: list[int] = []

    async def read() -> None:
        async for _, delta in stream:
            got.extend(delta.token_ids)

    reading = asyncio.ensure_future(read())
    for after in deaths:
        await asyncio.sleep(0.01)
        if reading.done():
            break
        engine = owner(engines)
        for token in range(after):
            engine.say(token)
        engine.die()
    await asyncio.wait([reading], timeout=0.05)
    pool.cancel(stream)
    lost = reading.done() and reading.exception() is not None
    begun = next((after for after in deaths if after), None)
    assert lost
    assert got == list(range(begun if begun is not None and deaths != (0, 0) else 0))
    assert pool.num_open() == 0
    assert not pool._num_open
