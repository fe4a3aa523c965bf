"""Which adapters live in the bank, who may be moved out, and what is being fetched. Plain Python, no torch.

An adapter takes as many pages of the bank as its rank needs. It is in one of these states::

    store ──fetch──▶ fetching ──fetched──▶ host ──load──▶ device ──evict──▶ host ──drop──▶ store
                        └──failed──▶ store (whoever waits is told)

``add_waiting`` asks for an adapter while requests wait for it (one fetch, however many wait), ``acquire`` takes a
reference while a sequence runs: an adapter with references is never moved. Eviction takes idle adapters, least recently
used first, and those that requests wait for only for the sake of an older request.

Where adapters are used without a pause, none ever becomes idle. So for a request that waited long enough the adapter
with the fewest references is *draining*: no sequence begins with it any more, until the last one has ended and it is
evicted. Only a part of the device drains at once, and what becomes free goes to that request before any younger one.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Tier = Literal["store", "fetching", "host", "device"]


@dataclass(eq=False, slots=True)
class CachedAdapter:
    """An adapter in memory: its pages while it is on the device, and how many sequences hold it there."""

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


#: Of the device's pages, what may be closed at once.
DRAINING_SHARE = 4

#: What is copied to the device in one step beside running sequences, in bytes; one adapter at least.
LOAD_BYTES_PER_STEP = 16 << 20


@dataclass(frozen=True, slots=True)
class AdapterSwaps:
    """What the caller must do now: take these off the device, copy these to their pages, drop these from the host."""

    evicted: list[CachedAdapter] = field(default_factory=list)
    loaded: list[CachedAdapter] = field(default_factory=list)
    dropped: list[CachedAdapter] = field(default_factory=list)


class AdapterCache:
    """Which adapters are where, over ``num_pages`` pages and ``host_bytes`` of host memory."""

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

    # -- what requests ask ---------------------------------------------------------------------------------------
    def add_waiting(self, digest: str) -> CachedAdapter:
        adapter = self.adapters.get(digest)
        if adapter is None:
            adapter = self.adapters[digest] = self._to_fetch[digest] = CachedAdapter(digest)
        adapter.num_waiting += 1
        adapter.last_used = next(self._clock)
        return adapter

    def remove_waiting(self, digest: str) -> None:
        if (adapter := self.adapters.get(digest)) and adapter.num_waiting:
            adapter.num_waiting -= 1

    def is_available(self, digest: str) -> bool:
        """On the device now, and not about to leave it."""
        adapter = self.adapters.get(digest)
        return adapter is not None and adapter.tier == "device" and not adapter.draining

    def acquire(self, digest: str) -> CachedAdapter:
        """Look-up and reference in one step. The adapter must be available."""
        adapter = self.adapters[digest]
        if adapter.tier != "device":
            raise RuntimeError(f"{digest} is not on the device but {adapter.tier}")
        adapter.num_running += 1
        self.remove_waiting(digest)
        adapter.last_used = next(self._clock)
        return adapter

    def release(self, adapter: CachedAdapter) -> None:
        adapter.num_running -= 1
        adapter.last_used = next(self._clock)

    # -- what the caller does ------------------------------------------------------------------------------------
    def pop_fetches(self) -> list[CachedAdapter]:
        """Seats whose files must be read now; each is handed out once."""
        asked, self._to_fetch = self._to_fetch, {}
        for digest, adapter in asked.items():
            if adapter.num_waiting:
                adapter.tier = "fetching"
            else:  # whoever asked has left
                del self.adapters[digest]
        return [adapter for adapter in asked.values() if adapter.num_waiting]

    def mark_fetched(self, digest: str, *, num_pages: int, num_bytes: int, load_ms: float) -> None:
        adapter = self.adapters[digest]
        adapter.tier, adapter.num_pages, adapter.num_bytes, adapter.load_ms = "host", num_pages, num_bytes, load_ms
        self.num_loads += 1
        self.num_held_bytes += num_bytes

    def mark_failed(self, digest: str) -> None:
        if (adapter := self.adapters.pop(digest, None)) is not None:
            self.num_held_bytes -= adapter.num_bytes

    def swap(self, queue: Sequence[str], starving: Collection[str] = (), *, hurried: bool = False) -> AdapterSwaps:
        """Give pages to fetched adapters that requests wait for; trim the host tier.

        ``queue`` names the adapters of waiting requests, oldest request first. An adapter may push out idle ones that
        nobody waits for, or that only younger requests wait for: the oldest request always gets its turn. For those
        that are ``starving`` adapters in use are closed. ``hurried``: sequences run, so no more is moved at once than
        they would hardly notice.
        """
        moves = AdapterSwaps()
        place = {digest: i for i, digest in reversed(list(enumerate(queue)))}
        fetched = [s for d in place if (s := self.adapters.get(d)) is not None and s.tier == "host"]
        num_bytes = 0
        for adapter in sorted(fetched, key=lambda s: place[s.digest]):
            if hurried and moves.loaded and num_bytes + adapter.num_bytes > LOAD_BYTES_PER_STEP:
                break
            if self._make_pages(adapter, place, moves):
                adapter.pages = tuple(heapq.heappop(self._free_pages) for _ in range(adapter.num_pages))
                adapter.tier = "device"
                self._on_device[adapter.digest] = adapter
                num_bytes += adapter.num_bytes
                moves.loaded.append(adapter)
            elif adapter.digest in starving:
                break
        self._close(starving, place)
        self._trim_host(moves)
        return moves

    def unload(self, adapter: CachedAdapter) -> None:
        """Take the pages back; the adapter stays in host memory."""
        for page in adapter.pages:
            heapq.heappush(self._free_pages, page)
        adapter.pages, adapter.tier, adapter.draining = (), "host", False
        del self._on_device[adapter.digest]

    def _evict(self, adapter: CachedAdapter, moves: AdapterSwaps) -> None:
        """Take an idle adapter off the device; host memory keeps it."""
        self.unload(adapter)
        self.num_evictions += 1
        moves.evicted.append(adapter)

    def _make_pages(self, adapter: CachedAdapter, place: Mapping[str, int], moves: AdapterSwaps) -> bool:
        nobody = len(place)
        idle = [s for s in self._movable(adapter, place) if not s.num_running]
        if len(self._free_pages) + sum(len(s.pages) for s in idle) < adapter.num_pages:
            return False
        idle.sort(key=lambda s: (-place.get(s.digest, nobody), s.last_used))
        while len(self._free_pages) < adapter.num_pages:
            self._evict(idle.pop(0), moves)
        return True

    def _movable(self, adapter: CachedAdapter, place: Mapping[str, int]) -> list[CachedAdapter]:
        """Adapters on the device that may go for the sake of ``adapter``: no older request waits for them."""
        mine, nobody = place[adapter.digest], len(place)
        return [s for s in self._on_device.values() if not s.pinned and place.get(s.digest, nobody) > mine]

    def _close(self, starving: Collection[str], place: Mapping[str, int]) -> None:
        """Choose who must make room for those that starve: who is closed already, then who is nearest to idle."""
        closed: dict[str, CachedAdapter] = {}
        for digest in starving:
            adapter = self.adapters[digest]
            if adapter.tier != "host":
                continue
            others = [s for s in self._movable(adapter, place) if s.digest not in closed]
            others.sort(key=lambda s: (not s.draining, s.num_running, s.last_used))
            num_pages = len(self._free_pages)
            while num_pages < adapter.num_pages and others:
                closed[others[0].digest] = others[0]
                num_pages += len(others.pop(0).pages)
            if sum(len(s.pages) for s in closed.values()) * DRAINING_SHARE >= self.num_pages:
                break
        for adapter in self._on_device.values():
            adapter.draining = adapter.digest in closed

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
        """Raise if pages are lost or shared: for tests and for idle moments."""
        used = [page for adapter in self.adapters.values() for page in adapter.pages]
        if sorted(used + self._free_pages) != list(range(self.num_pages)):
            raise RuntimeError(f"bank pages do not add up: used {sorted(used)}, free {sorted(self._free_pages)}")
        if self.num_held_bytes != sum(adapter.num_bytes for adapter in self.adapters.values()):
            raise RuntimeError(f"held bytes do not add up to {self.num_held_bytes}")
