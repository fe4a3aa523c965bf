"""Attention of a step on a GPU: the ``AttentionBackend`` that HF's modules call, and the launches of its kernels.

It needs no lengths on the host: positions are read on the device.
Shapes: T tokens, H query heads, K key-value heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from graftwork.server.engine.backends.cuda import attention_kernels
from graftwork.server.engine.backends.cuda.lora import operand_type
from graftwork.server.engine.backends.cuda.staging import upload
from graftwork.server.engine.backends.cuda.tiles import ATTENTION_TILE, tile_chunks
from graftwork.server.engine.kv.cache import KVCache

#: A decoding row's positions are cut into pieces of this many, more in caches of long slots: at most MAX_PIECES.
SPLIT_POSITIONS = 256
MAX_PIECES = 32

#: Bytes of the keys that a program loads at a time; values take as many again.
BLOCK_BYTES = 16 << 10

#: The fewest rows of ``tl.dot``.
MIN_ROWS = 16


@dataclass(frozen=True, slots=True)
class SlotAttention:
    """The attention of one step, an ``AttentionBackend``.

    Attributes:
        cache: Where keys and values are written and read.
        positions: [T] of all tokens in their sequences.
        slots: [T] of all tokens.
        rows: [n] tokens that decode.
        tiles: [m, 2] first token and token after the last, of all others.
    """

    cache: KVCache
    positions: Tensor
    slots: Tensor
    rows: Tensor
    tiles: Tensor

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Write the layer's keys and values to the cache, then attend.

        query [H, T, D], key and value [K, T, D] → [T, H, D].
        """
        num_heads, num_tokens, dim = query.shape
        query, key, value = (t if t.stride(2) == 1 else t.contiguous() for t in (query, key, value))
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        slot_stride, width = keys.stride(0), keys.shape[2]
        attention_kernels.write_slots[(num_tokens,)](
            key,
            value,
            keys,
            values,
            self.positions,
            self.slots,
            key.stride(0),
            key.stride(1),
            value.stride(0),
            value.stride(1),
            slot_stride,
            WIDTH=width,
            PADDED_WIDTH=triton.next_power_of_2(width),
            DIM=dim,
        )
        out = torch.empty(num_tokens, num_heads, dim, dtype=query.dtype, device=query.device)
        padded_dim = max(MIN_ROWS, triton.next_power_of_2(dim))
        block = max(MIN_ROWS, min(ATTENTION_TILE, BLOCK_BYTES // (padded_dim * keys.element_size())))
        kv_heads = width // dim
        sizes = {"WIDTH": width, "DIM": dim, "PADDED_DIM": padded_dim, "GROUP": num_heads // kv_heads, "BLOCK": block}
        looks = {"WINDOW": window or 0, "SOFTCAP": softcap or 0.0, "OPERAND": operand_type(query.dtype, query.device)}
        if len(self.tiles):
            attention_kernels.attend_tiles[len(self.tiles), num_heads](
                query,
                keys,
                values,
                self.tiles,
                self.positions,
                self.slots,
                out,
                scale,
                query.stride(0),
                query.stride(1),
                slot_stride,
                **sizes,
                **looks,
                BLOCK_M=ATTENTION_TILE,
                num_warps=8,
                num_stages=1 if query.dtype == torch.float32 else 2,
            )
        if len(self.rows):
            self._attend_rows(query, keys, values, out, scale, sizes, looks)
        return out

    def _attend_rows(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        out: Tensor,
        scale: float,
        sizes: dict[str, int],
        looks: dict[str, object],
    ) -> None:
        num_heads, _, dim = query.shape
        num_rows, group, block = len(self.rows), sizes["GROUP"], sizes["BLOCK"]
        split, num_pieces = pieces(keys.shape[1], block)
        # Three buffers, not one: whatever a piece does not write, merge_rows does not read.
        sums = torch.empty(num_rows, num_heads, num_pieces, dim, dtype=torch.float32, device=query.device)
        maxima, weights = torch.empty(2, num_rows, num_heads, num_pieces, dtype=torch.float32, device=query.device)
        attention_kernels.attend_rows[num_rows, num_heads // group, num_pieces](
            query,
            keys,
            values,
            self.rows,
            self.positions,
            self.slots,
            sums,
            maxima,
            weights,
            scale,
            query.stride(0),
            query.stride(1),
            keys.stride(0),
            num_pieces,
            **sizes,
            **looks,
            PADDED_GROUP=max(MIN_ROWS, triton.next_power_of_2(group)),
            SPLIT=split,
            num_warps=4,
            num_stages=2,
        )
        attention_kernels.merge_rows[num_rows, num_heads](
            sums,
            maxima,
            weights,
            self.rows,
            self.positions,
            out,
            num_pieces,
            DIM=dim,
            PADDED_DIM=sizes["PADDED_DIM"],
            PADDED_PIECES=triton.next_power_of_2(num_pieces),
            SPLIT=split,
            BLOCK=block,
            WINDOW=looks["WINDOW"],
            num_warps=4,
        )


def plan_for(cache: KVCache, spans: Sequence[tuple[int, int, int]]) -> SlotAttention:
    """The attention of some sequences, uploaded by itself. A whole step uploads all its lists at once.

    Args:
        cache: Holds the sequences.
        spans: For each sequence its slot, how many of its tokens the cache holds, and how many this step adds.
    """
    lists: dict[str, list[int]] = {"positions": [], "slots": [], "rows": []}
    chunks: list[tuple[int, int]] = []
    for slot, before, count in spans:
        first = len(lists["slots"])
        if count == 1 and before:
            lists["rows"].append(first)
        else:
            chunks.append((first, first + count))
        lists["positions"] += range(before, before + count)
        lists["slots"] += [slot] * count
    there = upload({**lists, "tiles": tile_chunks(chunks)}, cache.shape.device)
    return SlotAttention(cache, there["positions"], there["slots"], there["rows"], there["tiles"].view(-1, 2))


def pieces(slot_length: int, block: int) -> tuple[int, int]:
    """How many positions a piece has, a multiple of ``block``, and how many pieces a whole slot has."""
    split = max(SPLIT_POSITIONS, -(-slot_length // MAX_PIECES))
    split = -(-split // block) * block
    return split, -(-slot_length // split)
