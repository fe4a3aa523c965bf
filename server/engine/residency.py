"""Which adapters live in the bank, who may be moved out, and what is being fetched. Plain Python, no torch.

An adapter takes as many pages of the bank as its rank needs. It is in one of these states::

    store ──fetch──▶ fetching ──arrived──▶ host ──seat──▶ device ──evict──▶ host ──forget──▶ store
                        └──failed──▶ store (whoever waits is told)

``want`` asks for an adapter while requests wait for it (one fetch, however many wait), ``sit`` takes a reference while
a sequence runs: an adapter with references is never moved. Eviction takes idle adapters, least recently used first,
and those that requests wait for only for the sake of an older request.

Knows nothing of tensors or files: fetching and copying are the caller's.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Tier = Literal["store", "fetching", "host", "device"]


@dataclass(eq=False, slots=True)
class Seat:
    """An adapter's place: its pages while it is on the device, and how many sequences hold it there."""

    digest: str
    tier: Tier = "store"
    pages: tuple[int, ...] = ()
    num_pages: int = 0
    num_bytes: int = 0
    holders: int = 0
    wanted: int = 0
    last_used: int = 0
    pinned: bool = False
    requests: int = 0
    load_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Moves:
    """What the caller must do now: take these off the device, copy these to their pages, drop these from the host."""

    evicted: list[Seat] = field(default_factory=list)
    seated: list[Seat] = field(default_factory=list)
    forgotten: list[Seat] = field(default_factory=list)


class Residency:
    """The book of seats over ``num_pages`` pages and ``host_bytes`` of host memory."""

    def __init__(self, *, num_pages: int, host_bytes: int) -> None:
        self.num_pages = num_pages
        self.host_bytes = host_bytes
        self.seats: dict[str, Seat] = {}
        self.num_loads = 0
        self.num_evictions = 0
        self._free_pages = list(range(num_pages))
        self._clock = itertools.count(1)

    # -- what requests ask ---------------------------------------------------------------------------------------
    def want(self, digest: str) -> Seat:
        seat = self.seats.setdefault(digest, Seat(digest))
        seat.wanted += 1
        seat.last_used = next(self._clock)
        return seat

    def unwant(self, digest: str) -> None:
        if (seat := self.seats.get(digest)) and seat.wanted:
            seat.wanted -= 1

    def seatable(self, digest: str) -> bool:
        """On the device now."""
        seat = self.seats.get(digest)
        return seat is not None and seat.tier == "device"

    def short_of_pages(self, digest: str) -> bool:
        """Fetched, and only waiting for others to leave the device."""
        seat = self.seats.get(digest)
        return seat is not None and seat.tier == "host"

    def sit(self, digest: str) -> Seat:
        """Look-up and reference in one step. The adapter must be seatable."""
        seat = self.seats[digest]
        if seat.tier != "device":
            raise RuntimeError(f"{digest} is not on the device but {seat.tier}")
        seat.holders += 1
        seat.requests += 1
        self.unwant(digest)
        seat.last_used = next(self._clock)
        return seat

    def stand(self, seat: Seat) -> None:
        seat.holders -= 1
        seat.last_used = next(self._clock)

    # -- what the caller does ------------------------------------------------------------------------------------
    def to_fetch(self) -> list[Seat]:
        """Seats whose files must be read now; each is handed out once."""
        seats = [s for s in self.seats.values() if s.tier == "store" and s.wanted]
        for seat in seats:
            seat.tier = "fetching"
        return seats

    def arrived(self, digest: str, *, num_pages: int, num_bytes: int, load_ms: float) -> None:
        seat = self.seats[digest]
        seat.tier, seat.num_pages, seat.num_bytes, seat.load_ms = "host", num_pages, num_bytes, load_ms
        self.num_loads += 1

    def failed(self, digest: str) -> None:
        self.seats.pop(digest, None)

    def move(self, queue: Sequence[str]) -> Moves:
        """Give pages to fetched adapters that requests wait for; trim the host tier.

        ``queue`` names the adapters of waiting requests, oldest request first. An adapter may push out idle ones that
        nobody waits for, or that only younger requests wait for: the oldest request always gets its turn.
        """
        moves = Moves()
        place = {digest: i for i, digest in reversed(list(enumerate(queue)))}
        for digest in dict.fromkeys(queue):
            seat = self.seats.get(digest)
            if seat is not None and seat.tier == "host" and self._make_pages(seat, place, moves):
                seat.pages = tuple(heapq.heappop(self._free_pages) for _ in range(seat.num_pages))
                seat.tier = "device"
                moves.seated.append(seat)
        self._trim_host(moves)
        return moves

    def unseat(self, seat: Seat) -> None:
        """Take the pages back; the adapter stays in host memory."""
        for page in seat.pages:
            heapq.heappush(self._free_pages, page)
        seat.pages, seat.tier = (), "host"

    def _evict(self, seat: Seat, moves: Moves) -> None:
        """Take an idle adapter off the device; host memory keeps it."""
        self.unseat(seat)
        self.num_evictions += 1
        moves.evicted.append(seat)

    def _make_pages(self, seat: Seat, place: Mapping[str, int], moves: Moves) -> bool:
        nobody = len(place)
        idle = [
            s
            for s in self.seats.values()
            if s.tier == "device"
            and not s.holders
            and not s.pinned
            and place.get(s.digest, nobody) > place[seat.digest]
        ]
        if len(self._free_pages) + sum(len(s.pages) for s in idle) < seat.num_pages:
            return False
        idle.sort(key=lambda s: (-place.get(s.digest, nobody), s.last_used))
        while len(self._free_pages) < seat.num_pages:
            self._evict(idle.pop(0), moves)
        return True

    def _trim_host(self, moves: Moves) -> None:
        held = sum(s.num_bytes for s in self.seats.values() if s.tier in ("host", "device"))
        for seat in sorted(
            (s for s in self.seats.values() if s.tier == "host" and not s.wanted), key=lambda s: s.last_used
        ):
            if held <= self.host_bytes:
                return
            held -= seat.num_bytes
            seat.tier = "store"
            moves.forgotten.append(seat)

    def check_integrity(self) -> None:
        """Raise if pages are lost or shared: for tests and for idle moments."""
        used = [page for seat in self.seats.values() for page in seat.pages]
        if sorted(used + self._free_pages) != list(range(self.num_pages)):
            raise RuntimeError(f"bank pages do not add up: used {sorted(used)}, free {sorted(self._free_pages)}")
