"""Keys and values of every running sequence: one slot each, preallocated, written in place.

Layout: ``keys[layer]`` and ``values[layer]`` are [num_slots, slot_length, kv_heads * head_dim]. On a CPU the memory is
mapped, not touched: a slot costs what its sequence fills, and what is no longer needed is given back to the system.
Which slot belongs to which sequence, and what another may use of it, is decided by ``PrefixCache``.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass

import torch
from torch import Tensor

from graftwork.server.engine.kv.prefix_cache import SlotMove

#: Linux's number on x86 and ARM; Python has no name for it before 3.13.
MAP_NORESERVE = 0x4000

#: Tokens of a freed slot that stay mapped: short sequences come and go without a page fault.
KEEP_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class CacheShape:
    """Sizes of a key-value cache.

    Attributes:
        num_slots: Slots.
        slot_length: Tokens of a slot.
        kv_sizes: (kv_heads, head_dim) of each layer.
        dtype: Of keys and values.
        device: Where they are.
    """

    num_slots: int
    slot_length: int
    kv_sizes: tuple[tuple[int, int], ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_token(self) -> int:
        """Size of one token's keys and values in all layers."""
        return 2 * self.dtype.itemsize * sum(heads * dim for heads, dim in self.kv_sizes)

    def rounded(self, tensor: Tensor) -> Tensor:
        """Keys or values in the cache's dtype; what float16 cannot hold becomes its largest number."""
        if self.dtype == torch.float16:
            tensor = tensor.clamp(-65504, 65504)
        return tensor.to(self.dtype)


class KVCache:
    """The memory of all keys and values, and how far each slot is filled.

    Attributes:
        keys: One tensor a layer, [num_slots, slot_length, kv_heads * head_dim].
        values: As ``keys``.
    """

    def __init__(self, shape: CacheShape) -> None:
        self.shape = shape
        self._maps: list[mmap.mmap] = []
        self.keys = [self._allocate(heads * dim) for heads, dim in shape.kv_sizes]
        self.values = [self._allocate(heads * dim) for heads, dim in shape.kv_sizes]
        self._touched = [0] * shape.num_slots

    def _allocate(self, width: int) -> Tensor:
        size = (self.shape.num_slots, self.shape.slot_length, width)
        if self.shape.device.type != "cpu":
            return torch.zeros(size, dtype=self.shape.dtype, device=self.shape.device)
        num_elements = size[0] * size[1] * size[2]
        # Private, since memory given back to a shared mapping would stay; small pages, since a short row would touch
        # two megabytes a layer; not reserved, as most of it is never filled.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        memory = mmap.mmap(-1, num_elements * self.shape.dtype.itemsize, flags=flags)
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        self._maps.append(memory)
        return torch.frombuffer(memory, dtype=self.shape.dtype).view(size)

    def reset(self, slot: int) -> None:
        """Empty a slot for a new sequence."""
        self.truncate(slot, 0)

    def apply_move(self, move: SlotMove) -> None:
        """Make a slot hold the first tokens of another, or of itself, and nothing else."""
        if move.source != move.slot:
            for tensor in (*self.keys, *self.values):
                tensor[move.slot, : move.count].copy_(tensor[move.source, : move.count])
            self.extend(move.slot, move.count)
        self.truncate(move.slot, move.count, give_back=not move.in_use)

    def truncate(self, slot: int, length: int, *, give_back: bool = False) -> None:
        """Make a slot hold its first ``length`` tokens only.

        What was behind them is wiped: rows are padded to their neighbours' length, and a stale NaN behind a masked
        position would still make the sum NaN (0 · NaN).

        Args:
            slot: The slot.
            length: Tokens that stay.
            give_back: Unmap all memory behind them, not only what is behind the first ``KEEP_TOKENS``.
        """
        stop = self._touched[slot]
        kept = length if give_back else max(length, KEEP_TOKENS)
        if self._maps and kept < stop:
            self._give_back(slot, kept, stop)
            stop = kept
        if length < stop:
            for tensor in (*self.keys, *self.values):
                tensor[slot, length:stop].zero_()
        self._touched[slot] = min(self._touched[slot], length)

    def extend(self, slot: int, length: int) -> None:
        """Note that a slot is filled up to ``length`` tokens."""
        self._touched[slot] = max(self._touched[slot], length)

    def _give_back(self, slot: int, start: int, stop: int) -> None:
        """Unmap tokens start..stop of a slot: whole pages only, the rest is set to zero."""
        for memory, tensor in zip(self._maps, (*self.keys, *self.values), strict=True):
            token_bytes = tensor.shape[2] * tensor.dtype.itemsize
            first = (slot * self.shape.slot_length + start) * token_bytes
            last = (slot * self.shape.slot_length + stop) * token_bytes
            first_page, last_page = -(-first // mmap.PAGESIZE), last // mmap.PAGESIZE
            if last_page <= first_page:
                tensor[slot, start:stop].zero_()
                continue
            memory.madvise(mmap.MADV_DONTNEED, first_page * mmap.PAGESIZE, (last_page - first_page) * mmap.PAGESIZE)
            flat = tensor.view(-1)
            flat[first // tensor.dtype.itemsize : first_page * mmap.PAGESIZE // tensor.dtype.itemsize].zero_()
            flat[last_page * mmap.PAGESIZE // tensor.dtype.itemsize : last // tensor.dtype.itemsize].zero_()
