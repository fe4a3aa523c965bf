"""Plays the engine around a scheduler, without a model.

Its memory knows whose tokens lie where, its adapters arrive when told, and every step is held to the promises.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

from graftwork.server.engine.kv.prefix_cache import Prefix, SlotMove
from graftwork.server.engine.lora.adapter_cache import AdapterCache
from graftwork.server.engine.request import Pooling, Request, SamplingParams
from graftwork.server.engine.scheduler import Scheduler, SchedulerConfig
from graftwork.server.engine.sequence import ScheduledTokens, SequenceState

#: What a token's keys and values depend on: the adapter and all tokens up to it.
Cell = tuple[str | None, int]


def make(
    max_sequences: int = 4,
    max_length: int = 64,
    cache_tokens: int = 128,
    step_tokens: int = 16,
    pages: int = 4,
    num_slots: int | None = None,
    max_overtakes: int = 5,
    prefix_cache: bool = True,
    host_bytes: int = 1000,
) -> Scheduler:
    limits = SchedulerConfig(
        max_sequences=max_sequences,
        max_length=max_length,
        cache_tokens=cache_tokens,
        num_slots=num_slots,
        step_tokens=step_tokens,
        max_overtakes=max_overtakes,
        prefix_cache=prefix_cache,
    )
    return Scheduler(limits, AdapterCache(num_pages=pages, host_bytes=host_bytes))


def ask(
    request_id: str,
    prompt: int | Sequence[int],
    adapter: str | None = None,
    max_tokens: int = 8,
    prompt_logprobs: int | None = None,
    pooling: Pooling | None = None,
    cache_salt: str = "",
    tenant: str = "",
    weight: float = 1.0,
) -> Request:
    """A number is a prompt of so many tokens that no other request begins with."""
    if isinstance(prompt, int):
        prompt = [hash((request_id, index)) for index in range(prompt)]
    sampling = SamplingParams(max_tokens=max_tokens, prompt_logprobs=prompt_logprobs, pooling=pooling)
    return Request(
        id=request_id,
        prompt=tuple(prompt),
        adapter=adapter,
        sampling=sampling,
        cache_salt=cache_salt,
        tenant=tenant,
        weight=weight,
    )


class Driver:
    """``fetch_steps`` after it was wanted an adapter arrives. ``say`` chooses tokens: by default none is like another.

    ``first_token`` and ``ended`` are the steps after which requests had their first token, and ended; ``pooled`` are
    the positions whose hidden states were asked for.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        pages_of: dict[str, int] | None = None,
        *,
        fetch_steps: int = 0,
        say: Callable[[SequenceState], int] | None = None,
        checked: bool = True,
    ) -> None:
        self.scheduler = scheduler
        self.pages_of = pages_of or {}
        self.fetch_steps = fetch_steps
        self.checked = checked
        self.say = say or (lambda _: next(self._numbers))
        self.steps = 0
        self.num_computed = 0
        self.num_copied = 0
        self.loaded: list[str] = []
        self.asked: dict[str, int] = {}
        self.first_token: dict[str, int] = {}
        self.ended: dict[str, int] = {}
        self.said: dict[str, list[int]] = {}
        self.pooled: dict[str, list[int]] = {}
        self.memory: list[list[Cell]] = [[] for _ in range(scheduler.prefix_cache.num_slots)]
        self._numbers = itertools.count(-1, -1)
        self._arriving: dict[str, int] = {}
        self._cells: WeakKeyDictionary[Prefix, list[Cell]] = WeakKeyDictionary()

    @property
    def finished(self) -> list[str]:
        return list(self.ended)

    def ask(self, *arguments: object, **options: object) -> SequenceState:
        sequence = self.scheduler.add(ask(*arguments, **options))  # type: ignore[arg-type]
        self.asked[sequence.request.id] = self.steps
        return sequence

    def step(self) -> list[tuple[str, int, int]]:
        """(request, first token, number of tokens) of what was computed."""
        self._move_adapters()
        work = self.scheduler.schedule()
        for move in self.scheduler.prefix_cache.pop_moves():
            self._arrange(move)
        if self.checked:
            self.check(work)
        self.steps += 1
        for item in work:
            self._compute(item)
        return [(item.sequence.request.id, item.start, item.count) for item in work]

    def run(self, limit: int = 5000) -> None:
        while len(self.scheduler) and self.steps < limit:
            self.step()
        assert not len(self.scheduler), "starved"

    def fail_step(self) -> list[str]:
        """A step whose moves were made or not, and whose computation was not: everybody in it ends."""
        self._move_adapters()
        work = self.scheduler.schedule()
        self.scheduler.prefix_cache.pop_moves()
        for item in work:
            assert item.sequence.slot is not None
            self.memory[item.sequence.slot] = [(None, 0)] * self.scheduler.config.max_length
            self.scheduler.finish(item.sequence, keep=False)
        return [item.sequence.request.id for item in work]

    # -- what the engine would do --------------------------------------------------------------------------------
    def _move_adapters(self) -> None:
        scheduler, residency = self.scheduler, self.scheduler.adapter_cache
        for adapter in residency.pop_fetches():
            self._arriving[adapter.digest] = self.steps + self.fetch_steps
        for digest in [digest for digest, when in self._arriving.items() if when <= self.steps]:
            del self._arriving[digest]
            residency.mark_fetched(digest, num_pages=self.pages_of.get(digest, 1), num_bytes=10, load_ms=1.0)
        moves = residency.swap(
            scheduler.waiting_adapters(), scheduler.starving_adapters(), hurried=bool(scheduler.running)
        )
        self.loaded += [adapter.digest for adapter in moves.loaded]

    def _arrange(self, move: SlotMove) -> None:
        if move.source != move.slot:
            self.num_copied += move.count
        assert len(self.memory[move.source]) >= move.count
        self.memory[move.slot] = self.memory[move.source][: move.count]

    def _compute(self, item: ScheduledTokens) -> None:
        sequence, completes = item.sequence, item.needs_sample
        assert sequence.slot is not None
        cells = self.memory[sequence.slot]
        assert cells == self._expected(sequence.prefix, item.start), "computed upon what is not its own"
        cells += self._expected(sequence.prefix, item.start + item.count)[item.start :]
        sequence.num_computed = item.start + item.count
        self.num_computed += item.count
        if sequence.request.sampling.prompt_logprobs is not None:
            sequence.num_scored = min(max(sequence.num_scored, sequence.num_computed + 1), sequence.num_prompt)
        if sequence.request.sampling.pooling is not None:
            assert item.hidden.start == max(item.start, sequence.num_pooled) or not item.hidden
            self.pooled.setdefault(sequence.request.id, []).extend(item.hidden)
            sequence.num_pooled = max(sequence.num_pooled, item.hidden.stop)
        if completes and sequence.request.sampling.max_tokens == 0:
            self.scheduler.finish(sequence)
            self.ended[sequence.request.id] = self.steps
        elif completes:
            token = self.say(sequence)
            sequence.tokens.append(token)
            request_id = sequence.request.id
            self.said.setdefault(request_id, []).append(token)
            self.first_token.setdefault(request_id, self.steps)
            limits = self.scheduler.config
            full = len(sequence.tokens) >= min(limits.max_length, limits.cache_tokens)
            if full or sequence.num_generated >= sequence.request.sampling.max_tokens:
                self.scheduler.finish(sequence)
                self.ended[request_id] = self.steps

    def check(self, work: list[ScheduledTokens]) -> None:
        scheduler, limits, cache = self.scheduler, self.scheduler.config, self.scheduler.prefix_cache
        slots = [s.slot for s in scheduler.running]
        assert len(set(slots)) == len(slots)
        assert None not in slots
        assert all(s.slot is None and s.cached_adapter is None for s in scheduler.waiting)
        held = sum(len(s.tokens) for s in scheduler.running)
        assert held + cache.num_retained_tokens <= limits.cache_tokens
        assert len(scheduler.running) <= limits.max_sequences
        for sequence in scheduler.running:
            if sequence.request.adapter is not None:
                assert sequence.cached_adapter is not None
                assert sequence.cached_adapter.tier == "device"
        assert sum(w.count for w in work if not w.sequence.decoding) <= limits.step_tokens
        assert all(w.count > 0 for w in work)
        assert len({w.sequence.request.id for w in work}) == len(work)
        for adapter in scheduler.adapter_cache.adapters.values():
            assert adapter.num_running == sum(s.cached_adapter is adapter for s in scheduler.running)
            assert adapter.num_waiting == sum(s.request.adapter == adapter.digest for s in scheduler.waiting)
        scheduler.adapter_cache.check_integrity()
        cache.check_integrity()
        for holding in cache:
            expected = self._expected(holding.prefix, holding.length)
            assert self.memory[holding.slot] == expected, "a slot does not hold what the book says"

    def _expected(self, prefix: Prefix, count: int) -> list[Cell]:
        cells = self._cells.setdefault(prefix, [])
        while len(cells) < count:
            before = cells[-1][1] if cells else 0
            cells.append((prefix.shared_by, hash((before, prefix.tokens[len(cells)]))))
        return cells[:count]
