"""One simulated engine: the adapter cache that serves, and a batch whose steps take the time that was measured.

A step gives every running sequence a token. Between two events nothing changes, so that many steps are computed at
once: ``decoded`` is how many tokens a sequence would have that had run from the beginning.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from benchmarks.fleet.workload import FleetSizes, StepTimes
from graftwork.server.engine.lora.adapter_cache import AdapterCache

#: Of one adapter in host memory, and of all: as many as there are on the device, once more.
_ADAPTER_BYTES: Final = 10 << 20


@dataclass(eq=False, slots=True)
class SimulatedRequest:
    """A request on its way.

    Attributes:
        adapter: Its digest.
        rank: Of the adapter, 0 the most frequent.
        new_tokens: Of its answer.
        asked_at: When the user asked, in seconds.
        first_token_at: When the answer begins, once it is known.
        is_hit: Whether its adapter was on the device when it came to the engine.
        taken_over: Whether its first engine was lost.
    """

    adapter: str
    rank: int
    new_tokens: int
    asked_at: float
    first_token_at: float = 0.0
    is_hit: bool = False
    taken_over: bool = False


@dataclass(slots=True)
class Changes:
    """What a call did: requests that ended, adapters that were loaded and evicted, fetches and when they are done."""

    ended: list[SimulatedRequest] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    evicted: list[str] = field(default_factory=list)
    fetches: list[tuple[float, str]] = field(default_factory=list)


class Replica:
    """One simulated engine. Times are in seconds of the simulated clock.

    Attributes:
        version: Changes whenever ``next_end`` does.
    """

    def __init__(self, sizes: FleetSizes, times: StepTimes) -> None:
        self.version = 0
        self._sizes, self._times = sizes, times
        self._cache = AdapterCache(num_pages=sizes.slots, host_bytes=2 * sizes.slots * _ADAPTER_BYTES)
        self._waiting: list[SimulatedRequest] = []
        self._running: list[tuple[float, int, SimulatedRequest]] = []
        self._batch: Counter[str] = Counter()
        self._decoded = 0.0
        self._debt = 0.0  # seconds of prompts and copies before decoding goes on
        self._at = 0.0
        self._fetching_until = 0.0
        self._order = 0

    def submit(self, request: SimulatedRequest, now: float) -> Changes:
        """Take a request in."""
        self._advance(now)
        cache, changes = self._cache, Changes()
        request.is_hit = cache.is_available(request.adapter)
        cache.add_waiting(request.adapter)
        self._waiting.append(request)
        for adapter in cache.pop_fetches():
            self._fetching_until = max(now, self._fetching_until) + self._times.fetch / 1e3
            changes.fetches.append((self._fetching_until, adapter.digest))
        self._admit(now, changes)
        return changes

    def fetched(self, adapter: str, now: float) -> Changes:
        """Note that an adapter is in host memory."""
        self._advance(now)
        changes = Changes()
        self._cache.mark_fetched(adapter, num_pages=1, num_bytes=_ADAPTER_BYTES, load_ms=self._times.fetch)
        self._admit(now, changes)
        return changes

    def end(self, now: float) -> Changes:
        """End the sequences that are complete."""
        self._advance(now)
        changes = Changes()
        while self._running and self._running[0][0] <= self._decoded + 1e-6:
            request = heapq.heappop(self._running)[2]
            self._cache.release(self._cache.adapters[request.adapter])
            self._batch[request.adapter] -= 1
            if not self._batch[request.adapter]:
                del self._batch[request.adapter]
            changes.ended.append(request)
        self._admit(now, changes)
        return changes

    def next_end(self) -> float | None:
        """When the next sequence is complete, if nothing happens until then."""
        if not self._running:
            return None
        return self._at + self._debt + max(0.0, self._running[0][0] - self._decoded) * self._step()

    def lose(self) -> list[SimulatedRequest]:
        """Everything that runs and waits, of an engine that is gone."""
        return [request for _, _, request in self._running] + self._waiting

    def _step(self) -> float:
        times = self._times
        return (times.step + times.row * len(self._running) + times.adapter * len(self._batch)) / 1e3

    def _advance(self, now: float) -> None:
        spent = now - self._at
        self._at = now
        paid = min(self._debt, spent)
        self._debt -= paid
        if self._running and spent > paid:
            self._decoded += (spent - paid) / self._step()

    def _admit(self, now: float, changes: Changes) -> None:
        """Put adapters on the device and start what can run, as ``Engine`` and ``Scheduler`` do."""
        self.version += 1
        if not self._waiting:
            return
        cache = self._cache
        if any(cache.adapters[request.adapter].tier == "host" for request in self._waiting):
            moves = cache.swap(list(dict.fromkeys(request.adapter for request in self._waiting)))
            changes.loaded += [adapter.digest for adapter in moves.loaded]
            changes.evicted += [adapter.digest for adapter in moves.evicted]
            self._debt += len(moves.loaded) * self._times.copy / 1e3
        still: list[SimulatedRequest] = []
        for request in self._waiting:
            if len(self._running) < self._sizes.max_batch and cache.is_available(request.adapter):
                cache.acquire(request.adapter)
                self._order += 1
                heapq.heappush(self._running, (self._decoded + request.new_tokens, self._order, request))
                self._batch[request.adapter] += 1
                self._debt += self._sizes.prompt_tokens * self._times.prompt_token / 1e3
                request.first_token_at = now + self._debt + self._step()
            else:
                still.append(request)
        self._waiting = still
