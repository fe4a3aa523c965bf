"""Several engines behind one ``EngineProtocol``: requests go where their adapter is, and to another engine on failure.

There is one rule for failures. Before a request's first delta, another engine takes it over, once, with the same
inputs and so with the same seed; after it, its stream ends with the error at once. What has reached the user is never
computed again, so nothing is answered twice or logged twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from graftwork.adapters.errors import GraftworkError, InvalidRequest, Overloaded, Unavailable
from graftwork.adapters.peft_format.spec import AdapterSpec
from graftwork.server.engine.request import Delta
from graftwork.server.observability.metrics import EngineStats
from graftwork.server.transport.engine import (
    AdapterPlacement,
    EngineInput,
    EngineProtocol,
    EngineState,
    EngineStream,
)
from graftwork.server.transport.routing import BOUND, RendezvousRouter

log = logging.getLogger(__name__)

T = TypeVar("T")

#: How often engines are asked what others let them compute.
WATCH_SECONDS: Final = 1.0

#: How often a draining engine is asked whether it has ended.
_DRAIN_POLL_SECONDS: Final = 0.05

#: So many engines are asked to take a request before it is refused.
MAX_ASKED: Final = 3

#: Where an adapter may be, best first; anything else is the store.
_TIERS: Final = ("device", "host", "fetching")

#: What the pool's state is when no engine is ready: the first of these that one of them has.
_STATES: Final[tuple[EngineState, ...]] = ("recovering", "starting", "draining")


@dataclass(eq=False, slots=True)
class PoolMember:
    """One engine of a pool.

    Attributes:
        id: Its name, which stays the same when it is started again: it decides which adapters it has.
        engine: The engine.
        kind: Engines of one kind serve the same adapters; new ones are tried on one engine of each kind.
        draining: Whether it finishes what it has and takes no more.
        num_foreign: Answers that others let it compute, when it was last asked.
    """

    id: str
    engine: EngineProtocol
    kind: str = "own"
    draining: bool = False
    num_foreign: int = 0

    @property
    def usable(self) -> bool:
        """Whether it takes requests."""
        return not self.draining and self.engine.state == "ready"

    @property
    def load(self) -> int:
        """Answers that it computes, or has waiting."""
        return self.engine.num_open() + self.num_foreign


@dataclass(frozen=True, slots=True, kw_only=True)
class PooledRequest:
    """What an engine is asked, as ``EngineProtocol.open`` has it; another engine is asked the same."""

    inputs: Sequence[EngineInput]
    adapter: str | None
    cache_salt: str
    background: bool
    tenant: str
    weight: float

    def open(self, engine: EngineProtocol) -> EngineStream:
        """Send it to an engine."""
        return engine.open(
            self.inputs,
            adapter=self.adapter,
            cache_salt=self.cache_salt,
            background=self.background,
            tenant=self.tenant,
            weight=self.weight,
        )


@dataclass(eq=False, slots=True, kw_only=True)
class PooledStream(EngineStream):
    """A stream that another engine takes over if its own is lost before the first delta.

    Attributes:
        pool: Has the other engines.
        request: What was asked.
        member: The engine that computes it.
        source: That engine's stream.
        cancelled: Choices that nobody waits for any more.
        ended: Whether it no longer counts as under way.
    """

    pool: EnginePool
    request: PooledRequest
    member: PoolMember
    source: EngineStream
    cancelled: set[int] = field(default_factory=set)
    ended: bool = False

    async def __aiter__(self) -> AsyncIterator[tuple[int, Delta]]:
        """Yield (choice, delta) until every choice has ended.

        Raises:
            Unavailable: The engine is lost; and it had begun to answer, or was the second one, or there is no other.
        """
        may_move = True
        try:
            while True:
                try:
                    async for item in self.source:
                        may_move = False
                        yield item
                    return
                except (Unavailable, Overloaded) as error:
                    if not may_move or not self.pool.take_over(self, error):
                        raise
                    may_move = False
        finally:
            self.pool.end(self)


class EnginePool:
    """Several engines as one; implements ``EngineProtocol``. All methods are called in one event loop.

    Args:
        members: The engines.
        bound: An engine takes up to so many times the mean load.

    Attributes:
        members: Those engines.

    Raises:
        ValueError: There are none, or two have one name.
    """

    def __init__(self, members: Sequence[PoolMember], *, bound: float = BOUND) -> None:
        if not members:
            raise ValueError("a pool needs an engine")
        self.members = tuple(members)
        self._router = RendezvousRouter([member.id for member in members], bound=bound)
        self._num_open: Counter[str] = Counter()  # answers under way, by adapter

    async def start(self, api_process: int, /) -> None:
        """Start all engines, and watch what others let them compute."""
        for member in self.members:
            await member.engine.start(api_process)
        self._watching = asyncio.create_task(self.watch())

    async def stop(self) -> None:
        """Stop all engines."""
        self._watching.cancel()
        for member in self.members:
            await member.engine.stop()

    # -- state ---------------------------------------------------------------------------------------------------
    @property
    def state(self) -> EngineState:
        """Ready while one engine is; else what the others wait for."""
        if any(member.usable for member in self.members):
            return "ready"
        states = {"draining" if member.draining else member.engine.state for member in self.members}
        return next(state for state in _STATES if state in states)

    @property
    def base_card(self) -> Mapping[str, Any]:
        """The card of the first engine that has one; the memory of all; the shortest context."""
        cards = [card for member in self.members if (card := member.engine.base_card)]
        if len(cards) < 2:
            return cards[0] if cards else {}
        memory = sum(card.get("memory_bytes", 0) for card in cards)
        lengths = [card["max_length"] for card in cards if "max_length" in card]
        return {**cards[0], "memory_bytes": memory, **({"max_length": min(lengths)} if lengths else {})}

    @property
    def num_restarts(self) -> int:
        """How often engines were started again."""
        return sum(member.engine.num_restarts for member in self.members)

    @property
    def max_open(self) -> int:
        """How many answers may be under way at once."""
        return sum(member.engine.max_open for member in self.members)

    @property
    def max_choices(self) -> int:
        """How many answers one request may have: one engine computes them all."""
        return max(member.engine.max_choices for member in self.members)

    def num_open(self) -> int:
        """Answers that are under way."""
        return sum(member.engine.num_open() for member in self.members)

    def num_background(self) -> int:
        """Those of them that no user of this process waits for."""
        return sum(member.engine.num_background() for member in self.members)

    # -- requests ------------------------------------------------------------------------------------------------
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
        """Send the choices of one request to one engine. Arguments are those of ``EngineProtocol.open``.

        Raises:
            InvalidRequest: There are more choices than any engine takes at all.
            Overloaded: The queues are full.
            Unavailable: There is no engine at the moment.
        """
        request = PooledRequest(
            inputs=inputs,
            adapter=adapter,
            cache_salt=cache_salt,
            background=background,
            tenant=tenant,
            weight=weight,
        )
        member, source = self._send(request)
        if adapter is not None:
            self._num_open[adapter] += len(inputs)
        return PooledStream(
            ids=source.ids,
            background=background,
            tenant=tenant,
            weight=weight,
            items=source.items,
            open=source.open,
            pool=self,
            request=request,
            member=member,
            source=source,
        )

    def cancel(self, stream: EngineStream, choice: int | None = None, /) -> None:
        """Stop one choice, or all. Choices that have ended are not affected."""
        assert isinstance(stream, PooledStream)
        stream.member.engine.cancel(stream.source, choice)
        stream.cancelled.update(range(len(stream.ids)) if choice is None else [choice])
        if len(stream.cancelled) == len(stream.ids):
            self.end(stream)

    def take_over(self, stream: PooledStream, error: GraftworkError) -> bool:
        """Send a request whose engine was lost to another one. Returns whether there was one."""
        lost = stream.member
        lost.engine.cancel(stream.source)
        if stream.ended:
            return False
        try:
            stream.member, stream.source = self._send(stream.request, without=lost)
        except GraftworkError:
            return False
        log.info("engine %s takes over from %s: %s", stream.member.id, lost.id, error)
        stream.ids, stream.items, stream.open = stream.source.ids, stream.source.items, stream.source.open
        for choice in stream.cancelled:
            stream.member.engine.cancel(stream.source, choice)
        return True

    def end(self, stream: PooledStream) -> None:
        """Count a stream as under way no longer."""
        if stream.ended:
            return
        stream.ended = True
        adapter = stream.request.adapter
        if adapter is not None:
            self._num_open[adapter] -= len(stream.request.inputs)
            if not self._num_open[adapter]:
                del self._num_open[adapter]

    def _send(self, request: PooledRequest, without: PoolMember | None = None) -> tuple[PoolMember, EngineStream]:
        """Open a request on the engine that is right for it, or else on the next that takes it."""
        inputs, adapter = request.inputs, request.adapter
        usable = self._usable()
        if without is not None:
            usable[self.members.index(without)] = False
        if len(inputs) > (most := self.max_choices):
            raise InvalidRequest(
                f"The request asks for {len(inputs)} answers at once; an engine takes {most}. Send several.",
                param="n",
            )
        loads = self._loads()
        refused: GraftworkError | None = None
        for _ in range(MAX_ASKED):
            place = self._router.choose(
                adapter, inputs[0][0], loads, usable, num_open=0 if adapter is None else self._num_open[adapter]
            )
            if place is None:
                break
            member = self.members[place]
            try:
                source = request.open(member.engine)
            except (Overloaded, Unavailable, InvalidRequest) as error:
                refused = error
                usable[place] = False
                continue
            return member, source
        if isinstance(refused, Overloaded):
            raise Overloaded(
                f"{self.num_open()} answers are running or waiting, which is all these engines take. Try again soon.",
                retry_after=refused.retry_after,
            )
        raise refused or self._unavailable()

    def _unavailable(self) -> Unavailable:
        messages = {
            "starting": "The base is still loading; try again in a few seconds.",
            "recovering": "The engines stopped and are being started again; try again in a few seconds.",
            "draining": "This server is shutting down.",
        }
        state = self.state
        return Unavailable(messages.get(state, "No engine takes requests; try again in a few seconds."), code=state)

    # -- adapters ------------------------------------------------------------------------------------------------
    def takes(self, spec: AdapterSpec, /) -> None:
        """Check whether every kind of engine can serve an adapter.

        Raises:
            InvalidAdapter: One cannot; the message names the field.
        """
        for member in {member.kind: member for member in self.members}.values():
            member.engine.takes(spec)

    async def canary(self, digest: str, /) -> None:
        """Load a published adapter and try it on one engine of each kind, where requests will go first.

        Raises:
            InvalidAdapter: It cannot be loaded, or changes nothing.
            Unavailable: A kind has no engine at the moment.
        """
        for kind in dict.fromkeys(member.kind for member in self.members):
            place = self._router.home(digest, self._usable(kind))
            if place is None:
                raise Unavailable(f"No engine of kind {kind} can try the adapter now; push it again in a few seconds.")
            await self.members[place].engine.canary(digest)

    async def release(self, digest: str, /) -> None:
        """Have every engine forget an adapter.

        Raises:
            Unavailable: One may still know it.
        """
        for member in self.members:
            await member.engine.release(digest)

    async def ensure(self, digest: str, /) -> None:
        """Have an adapter ready on the engine where its requests will go first.

        Raises:
            Unavailable: There is no engine at the moment, or it was lost.
        """
        place = self._router.home(digest, self._usable())
        if place is None:
            raise self._unavailable()
        await self.members[place].engine.ensure(digest)

    async def residency(self) -> Mapping[str, AdapterPlacement]:
        """Adapters that are not only in the store, by digest: where they are best off. Empty while there is no engine.

        Raises:
            Unavailable: No engine can tell.
        """
        merged: dict[str, AdapterPlacement] = {}
        for placements in await self._ask_all(lambda engine: engine.residency()):
            for digest, placement in placements.items():
                if digest not in merged or _order(placement) < _order(merged[digest]):
                    merged[digest] = placement
        return merged

    # -- what engines say of themselves --------------------------------------------------------------------------
    async def stats(self) -> EngineStats:
        """The sums of the statistics of those engines that answer.

        Raises:
            Unavailable: None does.
        """
        stats = await self._ask_all(lambda engine: engine.stats())
        if not stats:
            raise self._unavailable()
        return PoolStats(*(sum(getattr(of, entry.name) for of in stats) for entry in fields(PoolStats)))

    async def watch(self) -> None:
        """Ask engines again and again what others let them compute. Never returns."""
        while True:
            await asyncio.gather(*(self._look_at(member) for member in self.members if member.usable))
            await asyncio.sleep(WATCH_SECONDS)

    async def drain(self, id: str) -> None:
        """Give an engine no more requests, and wait until it has ended those that it has.

        Raises:
            KeyError: There is no such engine.
        """
        member = self._member(id)
        member.draining = True
        while member.engine.num_open():
            await asyncio.sleep(_DRAIN_POLL_SECONDS)

    def resume(self, id: str) -> None:
        """Give a drained engine requests again.

        Raises:
            KeyError: There is no such engine.
        """
        self._member(id).draining = False

    async def _look_at(self, member: PoolMember) -> None:
        try:
            stats = await member.engine.stats()
        except Unavailable:
            member.num_foreign = 0
        except Exception:  # of one engine must not end the watch over all
            member.num_foreign = 0
            log.exception("engine %s does not say how it is", member.id)
        else:
            member.num_foreign = max(0, stats.running + stats.waiting - member.engine.num_open())

    async def _ask_all(self, ask: Callable[[EngineProtocol], Coroutine[Any, Any, T]]) -> list[T]:
        """Ask all engines that are ready; the answers of those that answer."""
        asked = [ask(member.engine) for member in self.members if member.engine.state == "ready"]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        good: list[T] = []
        errors: list[BaseException] = []
        for answer in answers:
            if isinstance(answer, BaseException):
                errors.append(answer)
            else:
                good.append(answer)
        for error in errors:
            if not isinstance(error, Unavailable) or not good:
                raise error
        return good

    def _member(self, id: str) -> PoolMember:
        for member in self.members:
            if member.id == id:
                return member
        raise KeyError(id)

    def _usable(self, kind: str | None = None) -> NDArray[np.bool_]:
        return np.array([member.usable and kind in (None, member.kind) for member in self.members], dtype=bool)

    def _loads(self) -> NDArray[np.int64]:
        return np.array([member.load for member in self.members], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class PoolStats:
    """``EngineStats`` of several engines together."""

    running: int
    waiting: int
    memory_bytes: int
    cache_tokens_used: int
    retained_tokens: int
    num_prompt_tokens: int
    num_cached_tokens: int
    num_steps: int
    num_preemptions: int
    num_loads: int
    num_evictions: int


def members_of(engine: EngineProtocol) -> Mapping[str, EngineProtocol]:
    """The engines that one consists of, by name: those of a pool, or itself alone."""
    return {member.id: member.engine for member in engine.members} if isinstance(engine, EnginePool) else {"0": engine}


async def residents_of(engine: EngineProtocol) -> frozenset[str]:
    """The digests of all adapters that an engine, or any engine of a pool, does not only have in the store.

    Unlike a pool's ``residency`` it leaves out no engine that may need an adapter's files.

    Raises:
        Unavailable: An engine that computes or may begin to, does not say what it has.
    """

    async def ask(member: EngineProtocol) -> Iterable[str]:
        try:
            return await member.residency()
        except Unavailable:
            if member.state == "ready" or member.num_open():
                raise
            return ()

    return frozenset().union(*await asyncio.gather(*map(ask, members_of(engine).values())))


async def stats_of(engines: Mapping[str, EngineProtocol]) -> dict[str, EngineStats]:
    """The statistics of those engines that answer."""

    async def ask(engine: EngineProtocol) -> EngineStats | None:
        try:
            return await engine.stats()
        except Unavailable:
            return None

    answers = await asyncio.gather(*map(ask, engines.values()))
    return {name: stats for name, stats in zip(engines, answers, strict=True) if stats is not None}


def _order(placement: AdapterPlacement) -> int:
    return _TIERS.index(placement.tier) if placement.tier in _TIERS else len(_TIERS)
