"""Triton kernels of the adapters' GEMMs: ``shrink`` computes h = A·x, ``expand`` adds B·h to y.

Tokens are sorted by adapter. A *tile* is a few consecutive tokens of one adapter, five numbers: first token, token
after the last, where its pages begin in ``pages``, how many pages, and where its rows of h begin. A tile without tokens
is skipped: a captured graph launches as many tiles as there can be.

``touched[page]`` has a bit for each sibling layer that the page's adapter grafts onto; what is not touched is neither
read nor added. h is float32, one row for each token and page, one slab for each split of the inputs; ``expand`` adds
the slabs in their order. So a token's result depends on its adapter and on the layer's size, never on the rest of the
batch.

``OPERAND`` is the dtype of ``tl.dot``'s operands: bfloat16 on a GPU where the tables hold that, float32 in Triton's
interpreter, whose dot of bfloat16 is silently wrong.

Shapes: T tokens, P pages of the bank, n tiles, m blocks of columns.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def shrink(
    x: tl.tensor,  # [T, in]
    a: tl.tensor,  # [P, WIDTH, in]: the siblings' A, RANK rows each
    touched: tl.tensor,  # [P]
    tiles: tl.tensor,  # [n, 5]
    pages: tl.tensor,
    h: tl.tensor,  # [parts, rows, WIDTH] float32
    num_inputs: tl.tensor,
    x_stride: tl.tensor,
    h_stride: tl.tensor,  # from slab to slab
    CHUNK: tl.constexpr,  # inputs of one split, a multiple of BLOCK_K
    SPLITS: tl.constexpr,  # splits that one program adds up
    RANK: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED_WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OPERAND: tl.constexpr,
) -> None:
    """h = A·x for every token and page of a tile. Grid: [n, parts]."""
    tile, part = tl.program_id(0), tl.program_id(1)
    start = tl.load(tiles + tile * 5)
    stop = tl.load(tiles + tile * 5 + 1)
    if start >= stop:
        return
    first_page = tl.load(tiles + tile * 5 + 2)
    num_pages = tl.load(tiles + tile * 5 + 3)
    h_row = tl.load(tiles + tile * 5 + 4)
    tokens = tl.arange(0, BLOCK_M)
    inside = tokens < stop - start
    columns = tl.arange(0, PADDED_WIDTH)
    x_rows = x + (start + tokens)[:, None] * x_stride
    for index in range(num_pages):
        page = tl.load(pages + first_page + index)
        members = tl.load(touched + page)
        if members != 0:
            live = (columns < WIDTH) & (((members >> (columns // RANK)) & 1) != 0)
            a_page = a + page * (WIDTH * num_inputs) + columns[None, :] * num_inputs
            total = tl.zeros([BLOCK_M, PADDED_WIDTH], dtype=tl.float32)
            for split in range(SPLITS):
                begin = (part * SPLITS + split) * CHUNK
                end = tl.minimum(begin + CHUNK, num_inputs)
                partial = tl.zeros([BLOCK_M, PADDED_WIDTH], dtype=tl.float32)
                for k in range(begin, end, BLOCK_K):
                    inputs = k + tl.arange(0, BLOCK_K)
                    valid = inputs < num_inputs
                    x_block = tl.load(x_rows + inputs[None, :], mask=inside[:, None] & valid[None, :], other=0.0)
                    a_block = tl.load(a_page + inputs[:, None], mask=valid[:, None] & live[None, :], other=0.0)
                    partial = tl.dot(x_block.to(OPERAND), a_block.to(OPERAND), partial, input_precision="ieee")
                total += partial
            rows = h_row + index * (stop - start) + tokens
            h_block = h + part * h_stride + rows[:, None] * WIDTH + columns[None, :]
            tl.store(h_block, total, mask=inside[:, None] & (columns < WIDTH)[None, :])


@triton.jit
def expand(
    h: tl.tensor,  # [parts, rows, WIDTH] float32
    b: tl.tensor,  # [P, RANK, out]: the siblings' B side by side
    touched: tl.tensor,  # [P]
    tiles: tl.tensor,  # [n, 5]
    pages: tl.tensor,
    blocks: tl.tensor,  # [m, 3]: first column, column after the last, member
    y: tl.tensor,  # [T, out]
    num_outputs: tl.tensor,
    y_stride: tl.tensor,
    h_stride: tl.tensor,
    PARTS: tl.constexpr,
    RANK: tl.constexpr,
    WIDTH: tl.constexpr,
    ALIGNMENT: tl.constexpr,  # every sibling begins and ends at a multiple of this
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    OPERAND: tl.constexpr,
) -> None:
    """y += B·h for one tile and one block of columns. Grid: [n, m]."""
    tile, block = tl.program_id(0), tl.program_id(1)
    start = tl.load(tiles + tile * 5)
    stop = tl.load(tiles + tile * 5 + 1)
    if start >= stop:
        return
    first_page = tl.load(tiles + tile * 5 + 2)
    num_pages = tl.load(tiles + tile * 5 + 3)
    h_row = tl.load(tiles + tile * 5 + 4)
    # Without this hint Triton assumes no alignment of values from memory, and would load column by column.
    first_column = tl.multiple_of(tl.load(blocks + block * 3), ALIGNMENT)
    last_column = tl.multiple_of(tl.load(blocks + block * 3 + 1), ALIGNMENT)
    member = tl.load(blocks + block * 3 + 2)
    tokens = tl.arange(0, BLOCK_M)
    inside = tokens < stop - start
    ranks = tl.arange(0, RANK)
    columns = first_column + tl.arange(0, BLOCK_N)
    valid = columns < last_column
    total = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    touches = 0
    for index in range(num_pages):
        page = tl.load(pages + first_page + index)
        live = ((tl.load(touched + page) >> member) & 1) != 0
        touches += live.to(tl.int32)
        rows = h_row + index * (stop - start) + tokens
        h_block = h + rows[:, None] * WIDTH + member * RANK + ranks[None, :]
        shrunk = tl.zeros([BLOCK_M, RANK], dtype=tl.float32)
        for part in range(PARTS):
            shrunk += tl.load(h_block + part * h_stride, mask=inside[:, None] & live, other=0.0)
        b_block = b + page * (RANK * num_outputs) + ranks[:, None] * num_outputs + columns[None, :]
        b_values = tl.load(b_block, mask=valid[None, :] & live, other=0.0)
        total = tl.dot(shrunk.to(OPERAND), b_values.to(OPERAND), total, input_precision="ieee")
    if touches > 0:
        y_block = y + (start + tokens)[:, None] * y_stride + columns[None, :]
        mask = inside[:, None] & valid[None, :]
        total += tl.load(y_block, mask=mask, other=0.0).to(tl.float32)
        tl.store(y_block, total.to(y.dtype.element_ty), mask=mask)
