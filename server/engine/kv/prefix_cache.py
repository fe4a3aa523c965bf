"""Automatic prefix caching: which slot of the key-value cache holds which tokens, so that they are not computed again.

A sequence that leaves its slot leaves keys and values behind: the slot is *retained*, and its content is indexed by the
adapter's digest, a salt and the tokens. A new sequence of the same adapter and salt finds the longest prefix that it
shares with any slot. It either *takes over* a retained slot (a chat that grows: nothing is copied) or has the common
prefix *copied* from the slot that holds it, running or retained (a system prompt that many share). A slot is free,
running or retained::

    free ──allocate──▶ running ──release──▶ retained ──take over──▶ running
                                                └──evict──▶ free

Retained slots are evicted when their slot or their tokens are wanted, least recently used first. They lose their tails
before their heads: prefixes are what others share.

Prefixes are found by hashes of blocks of ``BLOCK_SIZE`` tokens, each hash including all blocks before it. A hit is
compared token by token before it is used. What must be done to the memory is returned as ``SlotMove``s, in order.

Plain Python, no torch. An adapter is identified by its digest, not by its name.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

#: Tokens of one hash. Prefixes shorter than that are not found.
BLOCK_SIZE = 16

#: When a retained slot's tail is cut off: the fewest tokens that are left, and the fewest that are cut off at once.
SHORTEST_HEAD = 64
SHORTEST_CUT = 256

#: A slot is taken over when that discards no more tokens than this part of what is shared. Copying a token costs about
#: a fortieth of computing it, and the discarded tokens may never be needed again.
FORGETTABLE = 1 / 16


@dataclass(frozen=True, slots=True)
class SlotMove:
    """``slot`` must hold the first ``count`` tokens of ``source``, itself or another slot, and nothing else.

    If it is not ``in_use``, no sequence runs in it next: the memory behind those tokens can be given back.
    """

    slot: int
    source: int
    count: int
    in_use: bool


class Prefix:
    """The tokens of one sequence under one adapter, and the hashes of their blocks.

    Args:
        adapter: Its digest; ``None`` is the bare base.
        tokens: Token ids; the sequence may append to them.
        salt: Of those with whom prefixes are shared.
    """

    def __init__(self, adapter: str | None, tokens: list[int], salt: str = "") -> None:
        self.shared_by = (adapter, salt)
        self.tokens = tokens
        self._keys: list[int] = []

    def keys(self, length: int) -> list[int]:
        """The hashes of all whole blocks of the first ``length`` tokens."""
        num_blocks = length // BLOCK_SIZE
        while len(self._keys) < num_blocks:
            start = len(self._keys) * BLOCK_SIZE
            before = self._keys[-1] if self._keys else hash(self.shared_by)
            self._keys.append(hash((before, *self.tokens[start : start + BLOCK_SIZE])))
        return self._keys[:num_blocks]


@dataclass(eq=False, slots=True)
class CachedSlot:
    """The content of a slot: the first ``length`` tokens of ``prefix``.

    A running one whose prompt is being computed will hold ``num_pending`` tokens; 0 once it does.
    """

    slot: int
    prefix: Prefix
    length: int = 0
    num_pending: int = 0
    running: bool = True


@dataclass(frozen=True, slots=True)
class PrefixHit:
    """The first ``count`` tokens are in the slot of ``holding``. ``None``: no slot has any."""

    count: int
    holding: CachedSlot | None


_MISS = PrefixHit(0, None)


class _BlockIndex:
    """The slots that have a block, and so everything before it, by the block's hash."""

    def __init__(self) -> None:
        self._slots: dict[int, dict[int, None]] = {}

    def add(self, slot: int, keys: list[int]) -> None:
        for key in keys:
            self._slots.setdefault(key, {})[slot] = None

    def remove(self, slot: int, keys: list[int]) -> None:
        for key in keys:
            slots = self._slots.get(key, {})
            slots.pop(slot, None)  # it is gone if another of the slot's blocks had the same hash: a hit less
            if not slots:
                self._slots.pop(key, None)

    def deepest(self, keys: list[int]) -> tuple[int, list[int]]:
        """The number of leading blocks of ``keys`` that some slot has, and the slots that have that many."""
        # A slot that has a block has all blocks before it.
        low, high = 0, len(keys)
        while low < high:
            middle = (low + high + 1) // 2
            if keys[middle - 1] in self._slots:
                low = middle
            else:
                high = middle - 1
        return low, list(self._slots[keys[low - 1]]) if low else []

    def pairs(self) -> Counter[tuple[int, int]]:
        """All (hash, slot) pairs, to compare two indexes."""
        return Counter((key, slot) for key, slots in self._slots.items() for slot in slots)


class PrefixCache:
    """Assigns slots to sequences, and finds prefixes in them.

    Args:
        num_slots: Slots of the key-value cache.
        enabled: Whether prefixes are used again. If not, slots are assigned all the same.

    Attributes:
        num_retained_tokens: Tokens in retained slots.
    """

    def __init__(self, num_slots: int, *, enabled: bool = True) -> None:
        self.num_slots = num_slots
        self.enabled = enabled
        self.num_retained_tokens = 0
        self._free = list(range(num_slots))
        self._running: dict[int, CachedSlot] = {}
        self._retained: dict[int, CachedSlot] = {}  # least recently used first
        self._computed = _BlockIndex()
        self._pending = _BlockIndex()
        self._moves: list[SlotMove] = []

    @property
    def num_retained(self) -> int:
        """Number of retained slots."""
        return len(self._retained)

    def pop_moves(self) -> list[SlotMove]:
        """What must be done to the memory before the next step, in this order. Each move is returned once."""
        moves, self._moves = self._moves, []
        return moves

    # -- look-up -------------------------------------------------------------------------------------------------
    def find(self, wanted: Prefix, limit: int) -> PrefixHit:
        """The longest prefix of ``wanted``, of at most ``limit`` tokens, that has been computed."""
        num_blocks, slots = self._computed.deepest(wanted.keys(limit))
        best = _MISS
        for slot in slots:
            holding = self._holding(slot)
            hit = PrefixHit(_common_length(wanted, holding, num_blocks * BLOCK_SIZE, limit), holding)
            if (hit.count, -_cost(hit)) > (best.count, -_cost(best)):
                best = hit
        return best if best.holding is not None and _is_same(wanted, best.holding, best.count) else _MISS

    def find_pending(self, wanted: Prefix, limit: int) -> PrefixHit:
        """The longest prefix of ``wanted``, in whole blocks, of a prompt that is being computed now."""
        num_blocks, slots = self._pending.deepest(wanted.keys(limit))
        if not slots:
            return _MISS
        return PrefixHit(num_blocks * BLOCK_SIZE, max((self._running[slot] for slot in slots), key=lambda h: h.length))

    def num_tokens_in(self, slot: int) -> int:
        """How many tokens a running or retained slot holds."""
        return self._holding(slot).length

    # -- slots ---------------------------------------------------------------------------------------------------
    def allocate(self, wanted: Prefix, hit: PrefixHit, *, room: int) -> int:
        """Give a sequence a slot, which will hold what ``hit`` found. At least one slot must be free or retained.

        Args:
            wanted: The sequence's tokens.
            hit: What ``find`` returned for them.
            room: The most tokens that retained slots may hold afterwards.

        Returns:
            The slot. The moves that fill it are among those of ``pop_moves``.
        """
        source = hit.holding
        if source is not None and not source.running and self._should_take_over(hit, room):
            slot = source.slot
            self._forget(source)
            source = None
        else:
            slot = self._empty_slot(spare=source)
        self._moves.append(SlotMove(slot, slot if source is None else source.slot, hit.count, in_use=True))
        self._running[slot] = CachedSlot(slot, wanted, num_pending=len(wanted.tokens))
        if self.enabled:
            self._pending.add(slot, wanted.keys(len(wanted.tokens)))
        self.record_computed(slot, hit.count)
        if source is not None and not source.running:
            self._retained[source.slot] = self._retained.pop(source.slot)
        self.shrink(room, spare=source)
        return slot

    def record_computed(self, slot: int, length: int) -> None:
        """Note that the sequence in ``slot`` has ``length`` tokens computed."""
        holding = self._running[slot]
        before, holding.length = holding.length, length
        if not self.enabled:
            return
        if length // BLOCK_SIZE > before // BLOCK_SIZE:
            self._computed.add(slot, holding.prefix.keys(length)[before // BLOCK_SIZE :])
        if holding.num_pending and length >= holding.num_pending:
            self._end_pending(holding)

    def release(self, slot: int, length: int, *, keep: bool) -> None:
        """Release the slot of a sequence with ``length`` tokens computed; ``keep`` them for others."""
        self.record_computed(slot, length)
        holding = self._running.pop(slot)
        self._end_pending(holding)
        holding.running = False
        self._retained[slot] = holding
        self.num_retained_tokens += length
        if not (self.enabled and keep and length >= BLOCK_SIZE):
            self._forget(holding)
            heapq.heappush(self._free, slot)

    def shrink(self, room: int, *, spare: CachedSlot | None = None) -> None:
        """Evict from retained slots, but for ``spare``, until they hold at most ``room`` tokens in all."""
        while self.num_retained_tokens > room:
            holding = self._oldest(spare)
            head = holding.length - max(self.num_retained_tokens - room, SHORTEST_CUT)
            if head >= SHORTEST_HEAD:
                self._cut(holding, head)
            else:
                head = 0
                self._forget(holding)
                heapq.heappush(self._free, holding.slot)
            self._moves.append(SlotMove(holding.slot, holding.slot, head, in_use=False))

    def _should_take_over(self, hit: PrefixHit, room: int) -> bool:
        """Whether the slot holds little beyond the hit, or could not be kept anyhow."""
        assert hit.holding is not None
        only_one = not self._free and len(self._retained) == 1
        return _cost(hit) <= max(BLOCK_SIZE, hit.count * FORGETTABLE) or hit.holding.length > room or only_one

    def _empty_slot(self, spare: CachedSlot | None) -> int:
        if self._free:
            return heapq.heappop(self._free)
        oldest = self._oldest(spare)
        self._forget(oldest)
        return oldest.slot

    def _oldest(self, spare: CachedSlot | None) -> CachedSlot:
        return next(holding for holding in self._retained.values() if holding is not spare)

    def _forget(self, holding: CachedSlot) -> None:
        """Remove a slot from the retained ones."""
        del self._retained[holding.slot]
        self.num_retained_tokens -= holding.length
        self._computed.remove(holding.slot, self._indexed(holding))

    def _cut(self, holding: CachedSlot, length: int) -> None:
        """Shorten a retained slot to ``length`` tokens."""
        self._computed.remove(holding.slot, self._indexed(holding)[length // BLOCK_SIZE :])
        self.num_retained_tokens -= holding.length - length
        holding.length = length

    def _end_pending(self, holding: CachedSlot) -> None:
        """Remove a prompt from the index of those that are being computed."""
        if self.enabled and holding.num_pending:
            self._pending.remove(holding.slot, holding.prefix.keys(holding.num_pending))
        holding.num_pending = 0

    def _indexed(self, holding: CachedSlot) -> list[int]:
        return holding.prefix.keys(holding.length) if self.enabled else []

    def _holding(self, slot: int) -> CachedSlot:
        return self._running.get(slot) or self._retained[slot]

    def __iter__(self) -> Iterator[CachedSlot]:
        return itertools.chain(self._running.values(), self._retained.values())

    def check_integrity(self) -> None:
        """Check the bookkeeping, for tests and when idle.

        Raises:
            RuntimeError: Slots are lost or shared, or the index does not match what the slots hold.
        """
        slots = [*self._free, *self._running, *self._retained]
        if sorted(slots) != list(range(self.num_slots)):
            raise RuntimeError(f"slots do not add up: {self._free}, {list(self._running)}, {list(self._retained)}")
        if self.num_retained_tokens != sum(holding.length for holding in self._retained.values()):
            raise RuntimeError(f"retained tokens do not add up to {self.num_retained_tokens}")
        if any(holding.length > len(holding.prefix.tokens) for holding in self):
            raise RuntimeError("a slot holds more tokens than its sequence has")
        computed = Counter((key, holding.slot) for holding in self for key in self._indexed(holding))
        coming = Counter((key, h.slot) for h in self._running.values() for key in h.prefix.keys(h.num_pending))
        if self._computed.pairs() != computed or self._pending.pairs() != (coming if self.enabled else Counter()):
            raise RuntimeError("the index does not say what the slots hold")


def _common_length(wanted: Prefix, holding: CachedSlot, count: int, limit: int) -> int:
    """The length of the common prefix of ``wanted`` and a slot, which is known to be ``count`` at least."""
    mine, its, stop = wanted.tokens, holding.prefix.tokens, min(limit, holding.length)
    count = min(count, stop)
    while count < stop and mine[count] == its[count]:
        count += 1
    return count


def _is_same(wanted: Prefix, holding: CachedSlot, count: int) -> bool:
    return wanted.shared_by == holding.prefix.shared_by and wanted.tokens[:count] == holding.prefix.tokens[:count]


def _cost(hit: PrefixHit) -> float:
    """Tokens that would be discarded if the slot were taken over; infinite for a running one."""
    if hit.holding is None or hit.holding.running:
        return float("inf")
    return hit.holding.length - hit.count
