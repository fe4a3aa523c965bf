"""The LoRA bank: A and B of all adapters on the device, in paged tables.

A page holds RANK_PAGE rank rows of one adapter over all modules; an adapter of a larger rank owns several. Tables are
allocated when the first adapter that needs them is loaded, so adapters on attention alone take no memory elsewhere.
Which adapter owns which page is decided by ``AdapterCache``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from graftwork.server.engine.lora.host_adapter import RANK_PAGE, LinearGraft
from graftwork.server.engine.lora.plan import LoraPlan

if TYPE_CHECKING:
    from graftwork.server.engine.lora.packed import PackedAdapter


class LoraTable:
    """All resident adapters' grafts on sibling linear layers that read one input.

    Shapes: P pages, T tokens.

    Args:
        num_pages: Of the bank.
        num_inputs: Inputs of the layers.
        slices: Columns of each member among the outputs of all.
        dtype: Of A and B.
        device: Where they are.

    Attributes:
        a: [P, members·RANK_PAGE, in]: the siblings' A share one GEMM. ``None`` before the first adapter.
        b: For each member [P, RANK_PAGE, out_j]; ``None`` while no adapter has touched it.
    """

    def __init__(
        self, *, num_pages: int, num_inputs: int, slices: Sequence[slice], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.num_pages = num_pages
        self.num_inputs = num_inputs
        self.slices = list(slices)
        self.dtype = dtype
        self.device = device
        self.a: Tensor | None = None
        self.b: list[Tensor | None] = [None] * len(self.slices)

    def write(self, pages: Sequence[int], grafts: Mapping[int, LinearGraft]) -> None:
        """Copy an adapter's grafts, by member, to its pages; members that it does not touch are zero there."""
        if grafts and self.a is None:
            size = (self.num_pages, len(self.slices) * RANK_PAGE, self.num_inputs)
            self.a = torch.zeros(size, dtype=self.dtype, device=self.device)
        if self.a is None:
            return
        for member, columns in enumerate(self.slices):
            graft, b = grafts.get(member), self.b[member]
            if graft is not None and b is None:
                size = (self.num_pages, RANK_PAGE, columns.stop - columns.start)
                b = self.b[member] = torch.zeros(size, dtype=self.dtype, device=self.device)
            if b is None:
                continue
            rows = slice(member * RANK_PAGE, (member + 1) * RANK_PAGE)
            for index, page in enumerate(pages):
                if graft is not None and index < len(graft.a):
                    self.a[page, rows].copy_(graft.a[index])
                    b[page].copy_(graft.b[index])
                else:
                    self.a[page, rows].zero_()
                    b[page].zero_()

    def add(self, plan: LoraPlan, x: Tensor, y: Tensor) -> None:
        """y [T, out] += B·A·x [T, in] for every run of the plan."""
        if self.a is None:
            return
        x = x.to(self.dtype)
        for run in plan.long:
            for page in run.pages:
                h = x[run.start : run.stop] @ self.a[page].t()
                for member, b in enumerate(self.b):
                    if b is not None:
                        part = h[:, member * RANK_PAGE : (member + 1) * RANK_PAGE]
                        _add_product(y[run.start : run.stop, self.slices[member]], part, b[page])
        if (short := plan.short) is not None:
            h = torch.bmm(short.take(x), short.take_pages(self.a).transpose(1, 2))
            for member, b in enumerate(self.b):
                if b is not None:
                    part = h[:, :, member * RANK_PAGE : (member + 1) * RANK_PAGE]
                    short.put(y[:, self.slices[member]], torch.bmm(part, short.take_pages(b)))

    @property
    def num_bytes(self) -> int:
        """Size of the tables."""
        return sum(t.nbytes for t in (self.a, *self.b) if t is not None)


def _add_product(y: Tensor, h: Tensor, b: Tensor) -> None:
    """y += h·b, in one pass over y where the dtypes allow it."""
    if y.dtype == b.dtype:
        y.addmm_(h, b)
    else:
        y += (h @ b).to(y.dtype)


class LoraBank:
    """The adapters on the device and in host memory, and the plans of the current step.

    Attributes:
        num_pages: Pages of every table.
        dtype: Of the tables.
        device: Where the tables are.
        host_adapters: Packed adapters in host memory, by digest.
        plan: The adapters of the step that is being computed; ``None`` without any.
        head_plan: The same for the rows that reach the head.
    """

    def __init__(self, *, num_pages: int, dtype: torch.dtype, device: torch.device) -> None:
        self.num_pages = num_pages
        self.dtype = dtype
        self.device = device
        self.host_adapters: dict[str, PackedAdapter] = {}
        self.plan: LoraPlan | None = None
        self.head_plan: LoraPlan | None = None

    def new_table(self, num_inputs: int, slices: Sequence[slice]) -> LoraTable:
        """A table for sibling layers, empty."""
        return LoraTable(
            num_pages=self.num_pages, num_inputs=num_inputs, slices=slices, dtype=self.dtype, device=self.device
        )
