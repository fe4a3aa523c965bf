"""Decides which adapters are on the device, which may be evicted, and which are fetched. Plain Python, no torch.

An adapter takes as many pages of the bank as its rank needs. It is in one of these states::

    store ──fetch──▶ fetching ──fetched──▶ host ──load──▶ device ──evict──▶ host ──drop──▶ store
                        └──failed──▶ store (requests that wait for it fail)

``add_waiting`` fetches an adapter while requests wait for it (once, however many wait), ``acquire`` takes a reference
while a sequence runs: an adapter with references is never moved. Eviction takes idle adapters, least recently used
first, and those that requests wait for only for the sake of an older request.

An adapter that is used without a pause never becomes idle. So for a request that waited long enough the adapter with
the fewest references is *draining*: no new sequence may use it, and when the last one has ended it is evicted. Only a
part of the device drains at once, and the freed pages go to that request before any younger one.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

#: Where an adapter is.
Tier = Literal["store", "fetching", "host", "device"]


@dataclass(eq=False, slots=True)
class CachedAdapter:
    """An adapter that is in memory or being fetched.

    Attributes:
        digest: Its identity.
        tier: Where it is.
        pages: Its pages of the bank while it is on the device.
        num_pages: How many it needs there; 0 until it was fetched.
        num_bytes: Size in host memory; 0 until it was fetched.
        num_running: Sequences that run with it.
        num_waiting: Requests that wait for it.
        last_used: Logical time of the last use, for eviction.
        pinned: Never evicted.
        draining: On the device, closed to new sequences.
        load_ms: Duration of its last fetch.
    """

    digest: str
    tier: Tier = "store"
    pages: tuple[int, ...] = ()
    num_pages: int = 0
    num_bytes: int = 0
    num_running: int = 0
    num_waiting: int = 0
    last_used: int = 0
    pinned: bool = False
    draining: bool = False
    load_ms: float | None = None


#: One part in this many of the device's pages may drain at once.
DRAINING_SHARE = 4

#: The most bytes copied to the device in one step beside running sequences; one adapter is always copied.
LOAD_BYTES_PER_STEP = 16 << 20


@dataclass(frozen=True, slots=True)
class AdapterSwaps:
    """What the caller must do now, in this order.

    Attributes:
        evicted: Take these off the device.
        loaded: Copy these to their ``pages``.
        dropped: Delete these from host memory.
    """

    evicted: list[CachedAdapter] = field(default_factory=list)
    loaded: list[CachedAdapter] = field(default_factory=list)
    dropped: list[CachedAdapter] = field(default_factory=list)


class AdapterCache:
    """The state of every adapter in memory.

    Args:
        num_pages: Pages of the bank.
        host_bytes: The most host memory for adapters; those that are used or waited for may exceed it.
    """

    def __init__(self, *, num_pages: int, host_bytes: int) -> None:
        self.num_pages = num_pages
        self.host_bytes = host_bytes
        self.adapters: dict[str, CachedAdapter] = {}
        self.num_loads = 0
        self.num_evictions = 0
        self.num_held_bytes = 0
        self._to_fetch: dict[str, CachedAdapter] = {}
        self._on_device: dict[str, CachedAdapter] = {}
        self._free_pages = list(range(num_pages))
        self._clock = itertools.count(1)

    # -- for the scheduler ---------------------------------------------------------------------------------------
    def add_waiting(self, digest: str) -> CachedAdapter:
        """Count one more request that waits for an adapter, and fetch the adapter if it is not in memory."""
        adapter = self.adapters.get(digest)
        if adapter is None:
            adapter = self.adapters[digest] = self._to_fetch[digest] = CachedAdapter(digest)
        adapter.num_waiting += 1
        adapter.last_used = next(self._clock)
        return adapter

    def remove_waiting(self, digest: str) -> None:
        """Count one request less. Unknown digests are ignored: the fetch may have failed."""
        if (adapter := self.adapters.get(digest)) and adapter.num_waiting:
            adapter.num_waiting -= 1

    def is_available(self, digest: str) -> bool:
        """Whether the adapter is on the device and not draining."""
        adapter = self.adapters.get(digest)
        return adapter is not None and adapter.tier == "device" and not adapter.draining

    def acquire(self, digest: str) -> CachedAdapter:
        """Take a reference for a sequence that waited for the adapter.

        Raises:
            RuntimeError: The adapter is not on the device.
        """
        adapter = self.adapters[digest]
        if adapter.tier != "device":
            raise RuntimeError(f"{digest} is not on the device but {adapter.tier}")
        adapter.num_running += 1
        self.remove_waiting(digest)
        adapter.last_used = next(self._clock)
        return adapter

    def release(self, adapter: CachedAdapter) -> None:
        """Give a reference back."""
        adapter.num_running -= 1
        adapter.last_used = next(self._clock)

    def num_reclaimable_pages(self) -> int:
        """How many pages the next swap has for the adapter that comes first: free ones, and those of idle adapters."""
        idle = (s for s in self._on_device.values() if not s.num_running and not s.pinned)
        return len(self._free_pages) + sum(len(s.pages) for s in idle)

    def drain(self, adapter: CachedAdapter) -> None:
        """Close an adapter on the device to new sequences until the next swap, which can evict it for another."""
        adapter.draining = True

    # -- for the engine ------------------------------------------------------------------------------------------
    def pop_fetches(self) -> list[CachedAdapter]:
        """Adapters that must be read from the store now; each is returned once."""
        requested, self._to_fetch = self._to_fetch, {}
        for digest, adapter in requested.items():
            if adapter.num_waiting:
                adapter.tier = "fetching"
            else:  # its requests were aborted
                del self.adapters[digest]
        return [adapter for adapter in requested.values() if adapter.num_waiting]

    def mark_fetched(self, digest: str, *, num_pages: int, num_bytes: int, load_ms: float) -> None:
        """Note that an adapter is in host memory now. ``load_ms`` is how long that took."""
        adapter = self.adapters[digest]
        adapter.tier, adapter.num_pages, adapter.num_bytes, adapter.load_ms = "host", num_pages, num_bytes, load_ms
        self.num_loads += 1
        self.num_held_bytes += num_bytes

    def mark_failed(self, digest: str) -> None:
        """Forget an adapter that could not be fetched or copied: the next request fetches it again."""
        if (adapter := self.adapters.pop(digest, None)) is not None:
            self.num_held_bytes -= adapter.num_bytes

    def swap(self, queue: Sequence[str], starving: Collection[str] = (), *, hurried: bool = False) -> AdapterSwaps:
        """Give pages to fetched adapters that requests wait for, and trim the host memory.

        An adapter may evict idle ones that no request waits for, or that only younger requests wait for: the oldest
        request always gets its turn.

        Args:
            queue: Adapters of waiting requests, oldest request first.
            starving: Those for whose sake adapters in use are drained.
            hurried: Sequences run, so that only ``LOAD_BYTES_PER_STEP`` are copied at once.

        Returns:
            The changes, which the caller must apply before the next step.
        """
        moves = AdapterSwaps()
        order = {digest: i for i, digest in reversed(list(enumerate(queue)))}
        fetched = [s for d in order if (s := self.adapters.get(d)) is not None and s.tier == "host"]
        num_bytes = 0
        for adapter in sorted(fetched, key=lambda s: order[s.digest]):
            if hurried and moves.loaded and num_bytes + adapter.num_bytes > LOAD_BYTES_PER_STEP:
                break
            if self._make_pages(adapter, order, moves):
                adapter.pages = tuple(heapq.heappop(self._free_pages) for _ in range(adapter.num_pages))
                adapter.tier = "device"
                self._on_device[adapter.digest] = adapter
                num_bytes += adapter.num_bytes
                moves.loaded.append(adapter)
            elif adapter.digest in starving:
                break
        self._drain(starving, order)
        self._trim_host(moves)
        return moves

    def unload(self, adapter: CachedAdapter) -> None:
        """Free the pages of an adapter; it stays in host memory."""
        for page in adapter.pages:
            heapq.heappush(self._free_pages, page)
        adapter.pages, adapter.tier, adapter.draining = (), "host", False
        del self._on_device[adapter.digest]

    def _evict(self, adapter: CachedAdapter, moves: AdapterSwaps) -> None:
        """Take an idle adapter off the device; host memory keeps it."""
        self.unload(adapter)
        self.num_evictions += 1
        moves.evicted.append(adapter)

    def _make_pages(self, adapter: CachedAdapter, order: Mapping[str, int], moves: AdapterSwaps) -> bool:
        """Evict until ``adapter`` fits. Returns whether it does; if not, nothing is evicted."""
        nobody = len(order)
        idle = [s for s in self._movable(adapter, order) if not s.num_running]
        if len(self._free_pages) + sum(len(s.pages) for s in idle) < adapter.num_pages:
            return False
        idle.sort(key=lambda s: (-order.get(s.digest, nobody), s.last_used))
        while len(self._free_pages) < adapter.num_pages:
            self._evict(idle.pop(0), moves)
        return True

    def _movable(self, adapter: CachedAdapter, order: Mapping[str, int]) -> list[CachedAdapter]:
        """Adapters on the device that may give way to ``adapter``, perhaps later: no older request waits for them."""
        mine, nobody = order[adapter.digest], len(order)
        return [s for s in self._on_device.values() if not s.pinned and order.get(s.digest, nobody) > mine]

    def _drain(self, starving: Collection[str], order: Mapping[str, int]) -> None:
        """Choose adapters to drain for the starving: those that drain already, then those nearest to idle."""
        draining: dict[str, CachedAdapter] = {}
        for digest in starving:
            adapter = self.adapters[digest]
            if adapter.tier != "host":
                continue
            others = [s for s in self._movable(adapter, order) if s.digest not in draining]
            others.sort(key=lambda s: (not s.draining, s.num_running, s.last_used))
            num_pages = len(self._free_pages)
            while num_pages < adapter.num_pages and others:
                draining[others[0].digest] = others[0]
                num_pages += len(others.pop(0).pages)
            if sum(len(s.pages) for s in draining.values()) * DRAINING_SHARE >= self.num_pages:
                break
        for adapter in self._on_device.values():
            adapter.draining = adapter.digest in draining

    def _trim_host(self, moves: AdapterSwaps) -> None:
        if self.num_held_bytes <= self.host_bytes:
            return
        for adapter in sorted(
            (s for s in self.adapters.values() if s.tier == "host" and not s.num_waiting), key=lambda s: s.last_used
        ):
            if self.num_held_bytes <= self.host_bytes:
                return
            self.num_held_bytes -= adapter.num_bytes
            del self.adapters[adapter.digest]
            moves.dropped.append(adapter)

    def check_integrity(self) -> None:
        """Check the bookkeeping, for tests and when idle.

        Raises:
            RuntimeError: Pages are lost or shared, or the bytes in host memory do not add up.
        """
        used = [page for adapter in self.adapters.values() for page in adapter.pages]
        if sorted(used + self._free_pages) != list(range(self.num_pages)):
            raise RuntimeError(f"bank pages do not add up: used {sorted(used)}, free {sorted(self._free_pages)}")
        if self.num_held_bytes != sum(adapter.num_bytes for adapter in self.adapters.values()):
            raise RuntimeError(f"held bytes do not add up to {self.num_held_bytes}")
