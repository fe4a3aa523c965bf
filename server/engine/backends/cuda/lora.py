"""LoRA tables on a GPU in the layout of the Triton kernels, and the launches of these.

Every table is allocated at the start, so the memory that ``--slots`` costs is taken before the key-value cache is
sized, and captured graphs never see a table move. What an adapter does not touch takes memory, but is never read.

Shapes: T tokens, P pages of the bank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from graftwork.server.engine.backends.cuda import lora_kernels
from graftwork.server.engine.backends.cuda.staging import upload
from graftwork.server.engine.backends.cuda.tiles import SHORT_TILE, tile_runs
from graftwork.server.engine.lora.bank import LoraBank
from graftwork.server.engine.lora.host_adapter import RANK_PAGE, LinearGraft
from graftwork.server.engine.lora.plan import AdapterRun, LoraPlan
from graftwork.server.engine.model.weights import Weights

#: Split-K of ``shrink``: inputs of one split, about, and the most splits. A decoding step has few tiles, and a GPU has
#: a hundred multiprocessors to keep busy.
SPLIT_INPUTS = 512
MAX_SPLITS = 8

#: Columns of y that one program of ``expand`` computes.
BLOCK_COLUMNS = 128

#: Inputs that ``shrink`` takes at a time, for short and for long tiles.
BLOCK_INPUTS_SHORT = 128
BLOCK_INPUTS_LONG = 64


@dataclass(frozen=True, slots=True)
class DeviceTiles:
    """``RunTiles`` on the device.

    Attributes:
        size: The most tokens of a tile.
        num_tiles: Tiles that are launched.
        num_rows: Rows of h that are allocated.
        tiles: [num_tiles * 5], as ``RunTiles.tiles``.
        pages: As ``RunTiles.pages``.
    """

    size: int
    num_tiles: int
    num_rows: int
    tiles: Tensor
    pages: Tensor


class SegmentedPlan(LoraPlan):
    """A step's runs, cut into tiles.

    Args:
        runs: The runs, sorted as the tokens are.
        kinds: Their tiles: short ones, long ones, or both.
        for_graph: The launches are captured, to be replayed with other adapters: no table may be skipped.
    """

    def __init__(self, runs: Sequence[AdapterRun], kinds: Sequence[DeviceTiles], *, for_graph: bool = False) -> None:
        self.runs = runs
        self.kinds = kinds
        self.for_graph = for_graph


def plan_for(runs: Sequence[AdapterRun], device: torch.device) -> SegmentedPlan:
    """The plan of some runs, uploaded by itself. A whole step uploads all its lists at once."""
    kinds = []
    for cuts in tile_runs(runs):
        there = upload({"tiles": cuts.tiles, "pages": cuts.pages}, device)
        kinds.append(DeviceTiles(cuts.size, cuts.num_tiles, cuts.num_rows, there["tiles"], there["pages"]))
    return SegmentedPlan(runs, kinds)


@dataclass(frozen=True, slots=True)
class PinnedLoraPages:
    """An adapter's grafts on sibling layers, laid out like the table, in pinned host memory.

    Attributes:
        a: [pages, members·RANK_PAGE, in].
        b: [pages, RANK_PAGE, out].
        members: For each page a bit mask of the siblings that it grafts onto.
    """

    a: Tensor
    b: Tensor
    members: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Size of ``a`` and ``b``."""
        return self.a.nbytes + self.b.nbytes


class SegmentedTable:
    """Grafts of all resident adapters on sibling layers that read one input.

    Attributes:
        a: [P, members·RANK_PAGE, in].
        b: [P, RANK_PAGE, out], all members' B side by side.
        touched: [P] int32. Bit j of a page is set when the page's adapter grafts onto member j.
    """

    def __init__(
        self, *, num_pages: int, num_inputs: int, slices: Sequence[slice], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.num_inputs = num_inputs
        self.slices = list(slices)
        self.width = len(self.slices) * RANK_PAGE
        self.a = torch.zeros(num_pages, self.width, num_inputs, dtype=dtype, device=device)
        self.b = torch.zeros(num_pages, RANK_PAGE, self.slices[-1].stop, dtype=dtype, device=device)
        self.touched = torch.zeros(num_pages, dtype=torch.int32, device=device)
        self._members = [0] * num_pages  # the same on the host
        blocks = [
            (start, min(start + BLOCK_COLUMNS, columns.stop), member)
            for member, columns in enumerate(self.slices)
            for start in range(columns.start, columns.stop, BLOCK_COLUMNS)
        ]
        self._blocks = torch.tensor(blocks, dtype=torch.int32, device=device)
        bounds = [edge for columns in self.slices for edge in (columns.start, columns.stop)]
        self._alignment = 16 if all(edge % 16 == 0 for edge in bounds) else 1
        num_splits = min(MAX_SPLITS, -(-num_inputs // SPLIT_INPUTS))
        self._chunk = -(-num_inputs // num_splits // BLOCK_INPUTS_SHORT) * BLOCK_INPUTS_SHORT
        self._num_splits = -(-num_inputs // self._chunk)

    def pack(self, grafts: Mapping[int, LinearGraft]) -> PinnedLoraPages:
        """Lay out ``grafts`` (at least one), by member, as ``write`` copies them. Pinned: the copy is asynchronous."""
        num_pages = max(len(graft.a) for graft in grafts.values())
        pinned = self.a.device.type == "cuda"
        a, b = (
            torch.zeros(num_pages, *table.shape[1:], dtype=table.dtype, pin_memory=pinned) for table in (self.a, self.b)
        )
        members = [0] * num_pages
        for member, graft in grafts.items():
            count = len(graft.a)
            a[:count, member * RANK_PAGE : (member + 1) * RANK_PAGE] = graft.a
            b[:count, :, self.slices[member]] = graft.b
            for page in range(count):
                members[page] |= 1 << member
        return PinnedLoraPages(a, b, tuple(members))

    def write(self, pages: Sequence[int], packed: PinnedLoraPages | None) -> None:
        """Copy an adapter to its pages. Members that it does not touch keep stale values there, which are not read."""
        for index, page in enumerate(pages):
            members = 0
            if packed is not None and index < len(packed.members):
                members = packed.members[index]
                self.a[page].copy_(packed.a[index], non_blocking=True)
                self.b[page].copy_(packed.b[index], non_blocking=True)
            if members != self._members[page]:
                self.touched[page].fill_(members)
                self._members[page] = members

    def add(self, plan: SegmentedPlan, x: Tensor, y: Tensor) -> None:
        """y [T, out] += B·A·x [T, in] for every run of the plan.

        Raises:
            ValueError: The rows of ``x`` or ``y`` are not contiguous.
        """
        if plan.for_graph or any(self._members):
            for kind in plan.kinds:
                self._launch(kind, x, y)

    def _launch(self, kind: DeviceTiles, x: Tensor, y: Tensor) -> None:
        if x.stride(1) != 1 or y.stride(1) != 1:
            raise ValueError("rows of x and y must be contiguous")
        width = self.width
        decoding = kind.size == SHORT_TILE
        parts = self._num_splits if decoding else 1
        h = torch.empty(parts, kind.num_rows, width, dtype=torch.float32, device=x.device)
        operand = operand_type(self.a.dtype, x.device)
        lora_kernels.shrink[kind.num_tiles, parts](
            x,
            self.a,
            self.touched,
            kind.tiles,
            kind.pages,
            h,
            self.num_inputs,
            x.stride(0),
            h.stride(0),
            CHUNK=self._chunk,
            SPLITS=self._num_splits // parts,
            RANK=RANK_PAGE,
            WIDTH=width,
            PADDED_WIDTH=triton.next_power_of_2(width),
            BLOCK_M=kind.size,
            BLOCK_K=BLOCK_INPUTS_SHORT if decoding else BLOCK_INPUTS_LONG,
            OPERAND=operand,
            num_warps=4,
            num_stages=2 if self.a.dtype == torch.float32 else 3,
        )
        lora_kernels.expand[kind.num_tiles, len(self._blocks)](
            h,
            self.b,
            self.touched,
            kind.tiles,
            kind.pages,
            self._blocks,
            y,
            self.slices[-1].stop,
            y.stride(0),
            h.stride(0),
            PARTS=parts,
            RANK=RANK_PAGE,
            WIDTH=width,
            ALIGNMENT=self._alignment,
            BLOCK_M=kind.size,
            BLOCK_N=BLOCK_COLUMNS,
            OPERAND=operand,
            num_warps=4,
            num_stages=2,
        )


def operand_type(dtype: torch.dtype, device: torch.device) -> Any:
    """The Triton dtype of ``tl.dot``'s operands for tensors of ``dtype``: float32 where Triton interprets."""
    return tl.bfloat16 if dtype == torch.bfloat16 and device.type == "cuda" else tl.float32


class TritonLinear:
    """W·x by torch or bitsandbytes, plus the adapters by our kernels. A ``LinearMethod``.

    Args:
        weights: Of the sibling layers, stacked.
        bank: Sets the table's pages, dtype and device.
        num_inputs: Inputs of the layers.
        slices: Columns of each member among the outputs.
    """

    def __init__(self, weights: Weights, bank: LoraBank, num_inputs: int, slices: Sequence[slice]) -> None:
        self.weights = weights
        self.table = SegmentedTable(
            num_pages=bank.num_pages, num_inputs=num_inputs, slices=slices, dtype=bank.dtype, device=bank.device
        )

    def apply(self, x: Tensor, plan: LoraPlan | None) -> Tensor:
        """x [T, in] → [T, out of all members], without biases.

        Raises:
            TypeError: ``plan`` is of another backend.
        """
        y = self.weights.matmul(x)
        if isinstance(plan, SegmentedPlan):
            self.table.add(plan, x, y)
        elif plan is not None:
            raise TypeError(f"adapters on a card are given a {type(plan).__name__}")
        return y

    def pack(self, grafts: Mapping[int, LinearGraft]) -> PinnedLoraPages:
        """See ``SegmentedTable.pack``."""
        return self.table.pack(grafts)

    def write(self, pages: Sequence[int], packed: PinnedLoraPages | None) -> None:
        """See ``SegmentedTable.write``."""
        self.table.write(pages, packed)

    def dense(self) -> Tensor:
        """The weight as it acts, [out, in] float32."""
        return self.weights.dense()

    @property
    def num_bytes(self) -> int:
        """Size of the weights, without adapters."""
        return self.weights.num_bytes
