"""Attention of a mixed step over the cache's slots in plain torch: rows that decode, and chunks of prompts.

Shapes: T tokens of the step, H query heads, K key-value heads, G = H/K, D head dimension, N rows of a group's span,
n decoding rows of a group, L cache positions looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from graftwork.server.engine.batch import DecodeRow, PrefillChunk
from graftwork.server.engine.kv.cache import KVCache
from graftwork.server.engine.model.attention import scaled_dot_product

#: Rows up to this long are padded to one another; longer ones only to rows of like length.
PAD_TOGETHER = 512


@dataclass(slots=True)
class DecodeGroup:
    """Decoding rows that are padded to one length and computed at once.

    Their slots are a contiguous span, perhaps with holes, or are gathered.

    Attributes:
        tokens: [n] places in the step.
        rows: [n] rows of the span; ``None`` when the span has no holes.
        span: Slots as a view; ``None``: gather ``slots``.
        slots: [n] slots.
        num_rows: N.
        length: L, the longest row's.
        lengths: [N] valid positions of each row of the span.
        masks: By window.
    """

    tokens: Tensor
    rows: Tensor | None
    span: slice | None
    slots: Tensor
    num_rows: int
    length: int
    lengths: Tensor
    masks: dict[int | None, Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """The additive mask [N, 1, 1, L]; built once per step and window, shared by the layers."""
        if window not in self.masks:
            positions = torch.arange(self.length, device=self.lengths.device)
            hidden = positions >= self.lengths[:, None]
            if window is not None:
                hidden |= positions < self.lengths[:, None] - window
            self.masks[window] = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(
                hidden, float("-inf")
            )[:, None, None, :]
        return self.masks[window]


class AttentionPlan:
    """The attention of one step, an ``AttentionBackend``.

    Args:
        cache: Where keys and values are written and read.
        rows: Tokens that decode.
        chunks: All other tokens of the step.
        positions: [T] of all tokens in their sequences.
        slots: [T] of all tokens.
    """

    def __init__(
        self,
        cache: KVCache,
        rows: Sequence[DecodeRow],
        chunks: Sequence[PrefillChunk],
        positions: Tensor,
        slots: Tensor,
    ) -> None:
        self.cache = cache
        self.chunks = chunks
        self.write_at = slots * cache.shape.slot_length + positions  # [T] places in the flattened cache
        self.groups = [_decode_group(group, positions.device) for group in _group_by_length(rows)]

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
        num_tokens, dim = query.shape[1:]
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        width = keys.shape[2]
        for cache, new in ((keys, key), (values, value)):
            rows = self.cache.shape.rounded(new.transpose(0, 1).reshape(num_tokens, width))
            cache.view(-1, width).index_copy_(0, self.write_at, rows)
        query = query.transpose(0, 1)  # [T, H, D]
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        kv_heads = width // dim
        for group in self.groups:
            rows = _attend_group(group, query, keys, values, kv_heads, scale, window, softcap)
            out.index_copy_(0, group.tokens, rows)
        for chunk in self.chunks:
            span = slice(chunk.token, chunk.token + chunk.count)
            out[span] = _attend_chunk(chunk, query[span], keys, values, kv_heads, scale, window, softcap)
        return out


def _group_by_length(rows: Sequence[DecodeRow]) -> list[list[DecodeRow]]:
    """Rows that may be padded to one another: all short ones, and longer ones within a factor of two."""
    groups: dict[int, list[DecodeRow]] = {}
    for row in rows:
        groups.setdefault(max(row.length - 1, PAD_TOGETHER - 1).bit_length(), []).append(row)
    return [sorted(group, key=lambda r: r.slot) for group in groups.values()]


def _decode_group(rows: list[DecodeRow], device: torch.device) -> DecodeGroup:
    """A view over the slots where they are (nearly) contiguous, else a gathered copy."""
    first, last = rows[0].slot, rows[-1].slot
    width = last - first + 1
    as_view = width <= len(rows) + max(1, len(rows) // 4)
    if as_view:
        lengths = [1] * width  # a hole's result is discarded; one visible position keeps its softmax finite
        for row in rows:
            lengths[row.slot - first] = row.length
    else:
        lengths = [row.length for row in rows]
    index = [row.slot - first for row in rows]
    return DecodeGroup(
        tokens=torch.tensor([row.token for row in rows], device=device),
        rows=torch.tensor(index, device=device) if as_view and width != len(rows) else None,
        span=slice(first, last + 1) if as_view else None,
        slots=torch.tensor([row.slot for row in rows], device=device),
        num_rows=len(lengths),
        length=max(lengths),
        lengths=torch.tensor(lengths, device=device),
    )


def _attend_group(
    group: DecodeGroup,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    kv_heads: int,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Query heads that share a key-value head become rows of one small matrix: no key is read twice. → [n, H, D]"""
    num_heads, dim = query.shape[1], query.shape[2]
    q = query.index_select(0, group.tokens)
    if group.rows is not None:
        spread = q.new_zeros(group.num_rows, num_heads, dim)
        spread[group.rows] = q
        q = spread
    k, v = (
        (t[group.span] if group.span is not None else t.index_select(0, group.slots))[:, : group.length]
        .to(query.dtype)
        .view(group.num_rows, group.length, kv_heads, dim)
        .transpose(1, 2)
        for t in (keys, values)
    )
    q = q.view(group.num_rows, kv_heads, num_heads // kv_heads, dim)
    mask = group.mask(window, q.dtype)
    out = scaled_dot_product(q, k, v, mask, scale, softcap).reshape(group.num_rows, num_heads, dim)
    return out if group.rows is None else out[group.rows]


def _attend_chunk(
    chunk: PrefillChunk,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    kv_heads: int,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Attention of one prompt's chunk over its slot. query [count, H, D] → [count, H, D]"""
    num_heads, dim = query.shape[1], query.shape[2]
    stop = chunk.start + chunk.count
    k, v = (
        t[chunk.slot, :stop].to(query.dtype).view(stop, kv_heads, dim).transpose(0, 1)[None] for t in (keys, values)
    )
    q = query.transpose(0, 1)[None]
    if chunk.start == 0 and softcap is None and (window is None or stop <= window):
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=kv_heads != num_heads)
        return out[0].transpose(0, 1)
    positions = torch.arange(stop, device=q.device)
    here = positions[chunk.start :, None]
    hidden = positions > here
    if window is not None:
        hidden |= positions <= here - window
    mask = torch.zeros(hidden.shape, dtype=q.dtype, device=q.device).masked_fill_(hidden, float("-inf"))
    groups = num_heads // kv_heads
    q = (
        query.view(chunk.count, kv_heads, groups, dim)
        .permute(1, 2, 0, 3)
        .reshape(1, kv_heads, groups * chunk.count, dim)
    )
    out = scaled_dot_product(q, k, v, mask.repeat(groups, 1), scale, softcap)
    return out.view(kv_heads, groups, chunk.count, dim).permute(2, 0, 1, 3).reshape(chunk.count, num_heads, dim)
