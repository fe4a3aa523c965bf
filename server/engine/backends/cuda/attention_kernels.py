"""Triton kernels of attention over the cache's slots: write the new keys and values, attend, merge.

The cache is [slots, slot_length, kv_heads * DIM]. ``positions`` and ``slots`` hold the place of every token of the
step, so the number of visible positions is read on the device and a captured graph works for any lengths.

``attend_rows`` is for tokens that decode: a row's positions are cut at multiples of SPLIT, each piece is one program,
``merge_rows`` merges the pieces. ``attend_tiles`` is for chunks of prompts: a program computes some consecutive
tokens of one sequence and one head. Query heads that share a key-value head are rows of one matrix, so that a decoding
row reads its keys once. Sums and softmax are float32; ``OPERAND`` is the dtype of ``tl.dot``'s operands, see
lora_kernels.

Shapes: T tokens of the step, H query heads, K key-value heads, DIM head dimension, n rows or tiles of the launch.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def write_slots(
    key: tl.tensor,  # [K, T, DIM]
    value: tl.tensor,
    keys: tl.tensor,  # the layer's cache
    values: tl.tensor,
    positions: tl.tensor,  # [T]
    slots: tl.tensor,
    key_head: tl.tensor,  # strides
    key_token: tl.tensor,
    value_head: tl.tensor,
    value_token: tl.tensor,
    slot_stride: tl.tensor,
    WIDTH: tl.constexpr,
    PADDED_WIDTH: tl.constexpr,
    DIM: tl.constexpr,
) -> None:
    """Write the step's keys and values to the cache. Grid: [T]."""
    token = tl.program_id(0).to(tl.int64)
    place = tl.load(slots + token) * slot_stride + tl.load(positions + token) * WIDTH
    columns = tl.arange(0, PADDED_WIDTH)
    valid = columns < WIDTH
    head, dim = columns // DIM, columns % DIM
    new_key = tl.load(key + head * key_head + token * key_token + dim, mask=valid)
    tl.store(keys + place + columns, new_key, mask=valid)
    new_value = tl.load(value + head * value_head + token * value_token + dim, mask=valid)
    tl.store(values + place + columns, new_value, mask=valid)


@triton.jit
def scored(scores: tl.tensor, scale: tl.tensor, SOFTCAP: tl.constexpr) -> tl.tensor:
    """Attention logits from q·k, scaled, soft-capped, and multiplied by log2(e): ``exp2`` of them is exp."""
    scores = scores * scale
    if SOFTCAP > 0:
        # tanh by exponentials that cannot overflow
        scores = scores / SOFTCAP
        power = tl.exp2(tl.abs(scores) * (-2 * LOG2_E))
        scores = tl.where(scores < 0, -1.0, 1.0) * ((1 - power) / (1 + power)) * SOFTCAP
    return scores * LOG2_E


@triton.jit
def attend_rows(
    query: tl.tensor,  # [H, T, DIM]
    keys: tl.tensor,
    values: tl.tensor,
    rows: tl.tensor,  # [n] tokens that decode
    positions: tl.tensor,  # [T]
    slots: tl.tensor,
    sums: tl.tensor,  # [n, H, pieces, DIM] float32: weighted values of a piece, not yet divided
    maxima: tl.tensor,  # [n, H, pieces] float32
    weights: tl.tensor,  # [n, H, pieces] float32: sum of the weights
    scale: tl.tensor,
    query_head: tl.tensor,  # strides
    query_token: tl.tensor,
    slot_stride: tl.tensor,
    num_pieces: tl.tensor,
    WIDTH: tl.constexpr,
    DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    GROUP: tl.constexpr,  # query heads to a key-value head
    PADDED_GROUP: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,  # 0: none
    SOFTCAP: tl.constexpr,  # 0: none
    OPERAND: tl.constexpr,
) -> None:
    """Attention of decoding tokens over one piece of their positions. Grid: [n, K, pieces].

    A piece without visible positions writes nothing.
    """
    row, kv_head, piece = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    token = tl.load(rows + row)
    length = (tl.load(positions + token) + 1).to(tl.int32)
    first = 0
    if WINDOW > 0:
        first = tl.maximum(length - WINDOW, 0)
    begin = tl.maximum(piece * SPLIT, first // BLOCK * BLOCK)
    end = tl.minimum((piece + 1) * SPLIT, length)
    if begin >= end:
        return
    heads = kv_head * GROUP + tl.arange(0, PADDED_GROUP)
    is_head = tl.arange(0, PADDED_GROUP) < GROUP
    dims = tl.arange(0, PADDED_DIM)
    is_dim = dims < DIM
    q = tl.load(
        query + heads[:, None] * query_head + token * query_token + dims[None, :],
        mask=is_head[:, None] & is_dim[None, :],
        other=0.0,
    ).to(OPERAND)
    place = tl.load(slots + token) * slot_stride + kv_head * DIM
    best = tl.full([PADDED_GROUP], float("-inf"), dtype=tl.float32)
    weight = tl.zeros([PADDED_GROUP], dtype=tl.float32)
    total = tl.zeros([PADDED_GROUP, PADDED_DIM], dtype=tl.float32)
    for at in range(begin, end, BLOCK):
        seen = at + tl.arange(0, BLOCK)
        visible = (seen >= first) & (seen < end)
        k = tl.load(
            keys + place + seen[None, :] * WIDTH + dims[:, None], mask=is_dim[:, None] & visible[None, :], other=0.0
        )
        scores = scored(tl.dot(q, k.to(OPERAND), input_precision="ieee"), scale, SOFTCAP)
        scores = tl.where(visible[None, :], scores, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, 1))
        shares = tl.exp2(scores - higher[:, None])
        fade = tl.exp2(best - higher)
        v = tl.load(
            values + place + seen[:, None] * WIDTH + dims[None, :], mask=visible[:, None] & is_dim[None, :], other=0.0
        )
        total = tl.dot(shares.to(OPERAND), v.to(OPERAND), total * fade[:, None], input_precision="ieee")
        weight = weight * fade + tl.sum(shares, 1)
        best = higher
    out = (row * (tl.num_programs(1) * GROUP) + heads) * num_pieces + piece
    tl.store(sums + out[:, None] * DIM + dims[None, :], total, mask=is_head[:, None] & is_dim[None, :])
    tl.store(maxima + out, best, mask=is_head)
    tl.store(weights + out, weight, mask=is_head)


@triton.jit
def merge_rows(
    sums: tl.tensor,
    maxima: tl.tensor,
    weights: tl.tensor,
    rows: tl.tensor,
    positions: tl.tensor,
    out: tl.tensor,  # [T, H, DIM]
    num_pieces: tl.tensor,
    DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    PADDED_PIECES: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,
) -> None:
    """Merge the pieces of ``attend_rows`` into ``out``, by their softmax maxima and sums. Grid: [n, H]."""
    row, head = tl.program_id(0), tl.program_id(1)
    num_heads = tl.num_programs(1)
    token = tl.load(rows + row)
    length = (tl.load(positions + token) + 1).to(tl.int32)
    first = 0
    if WINDOW > 0:
        first = tl.maximum(length - WINDOW, 0)
    pieces = tl.arange(0, PADDED_PIECES)
    # Exactly those that attend_rows has written: the others hold what was there before.
    written = tl.maximum(pieces * SPLIT, first // BLOCK * BLOCK) < tl.minimum((pieces + 1) * SPLIT, length)
    place = (row * num_heads + head) * num_pieces + pieces
    best = tl.load(maxima + place, mask=written, other=float("-inf"))
    share = tl.exp2(best - tl.max(best, 0))
    weight = tl.sum(tl.load(weights + place, mask=written, other=0.0) * share, 0)
    dims = tl.arange(0, PADDED_DIM)
    is_dim = dims < DIM
    parts = tl.load(sums + place[:, None] * DIM + dims[None, :], mask=written[:, None] & is_dim[None, :], other=0.0)
    result = tl.sum(parts * share[:, None], 0) / weight
    tl.store(out + (token * num_heads + head) * DIM + dims, result.to(out.dtype.element_ty), mask=is_dim)


@triton.jit
def attend_tiles(
    query: tl.tensor,  # [H, T, DIM]
    keys: tl.tensor,
    values: tl.tensor,
    tiles: tl.tensor,  # [n, 2]: first token, token after the last, all of one sequence
    positions: tl.tensor,
    slots: tl.tensor,
    out: tl.tensor,  # [T, H, DIM]
    scale: tl.tensor,
    query_head: tl.tensor,  # strides
    query_token: tl.tensor,
    slot_stride: tl.tensor,
    WIDTH: tl.constexpr,
    DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    OPERAND: tl.constexpr,
) -> None:
    """Causal attention of a tile of prompt tokens over their slot (FlashAttention's online softmax). Grid: [n, H]."""
    tile, head = tl.program_id(0), tl.program_id(1)
    num_heads = tl.num_programs(1)
    start = tl.load(tiles + tile * 2)
    stop = tl.load(tiles + tile * 2 + 1)
    tokens = start + tl.arange(0, BLOCK_M)
    inside = tokens < stop
    from_position = tl.load(positions + start).to(tl.int32)
    here = from_position + tl.arange(0, BLOCK_M)
    end = from_position + (stop - start).to(tl.int32)
    begin = 0
    if WINDOW > 0:
        begin = tl.maximum(from_position - WINDOW + 1, 0) // BLOCK * BLOCK
    dims = tl.arange(0, PADDED_DIM)
    is_dim = dims < DIM
    q = tl.load(
        query + head * query_head + tokens[:, None] * query_token + dims[None, :],
        mask=inside[:, None] & is_dim[None, :],
        other=0.0,
    ).to(OPERAND)
    place = tl.load(slots + start) * slot_stride + (head // GROUP) * DIM
    best = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    weight = tl.zeros([BLOCK_M], dtype=tl.float32)
    total = tl.zeros([BLOCK_M, PADDED_DIM], dtype=tl.float32)
    for at in range(begin, end, BLOCK):
        seen = at + tl.arange(0, BLOCK)
        filled = seen < end
        k = tl.load(
            keys + place + seen[None, :] * WIDTH + dims[:, None], mask=is_dim[:, None] & filled[None, :], other=0.0
        )
        scores = scored(tl.dot(q, k.to(OPERAND), input_precision="ieee"), scale, SOFTCAP)
        visible = (seen[None, :] <= here[:, None]) & filled[None, :]
        if WINDOW > 0:
            visible = visible & (seen[None, :] > here[:, None] - WINDOW)
        scores = tl.where(visible, scores, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, 1))
        # A token may see nothing of a block that its tile's first one needs: no difference of two infinities.
        finite = tl.where(higher == float("-inf"), 0.0, higher)
        shares = tl.exp2(scores - finite[:, None])
        fade = tl.exp2(best - finite)
        v = tl.load(
            values + place + seen[:, None] * WIDTH + dims[None, :], mask=filled[:, None] & is_dim[None, :], other=0.0
        )
        total = tl.dot(shares.to(OPERAND), v.to(OPERAND), total * fade[:, None], input_precision="ieee")
        weight = weight * fade + tl.sum(shares, 1)
        best = higher
    result = total / tl.where(weight > 0, weight, 1.0)[:, None]
    place_out = out + (tokens[:, None] * num_heads + head) * DIM + dims[None, :]
    tl.store(place_out, result.to(out.dtype.element_ty), mask=inside[:, None] & is_dim[None, :])
