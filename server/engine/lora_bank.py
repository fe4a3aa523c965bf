"""The bank: every resident adapter's A and B in paged tables, and the plan of who uses which in a step.

A page holds RANK_PAGE rank rows of one adapter over all modules; an adapter of a larger rank owns several. Tables are
made when the first adapter that needs them arrives, so adapters on attention alone cost nothing elsewhere.

In a step the tokens are sorted by adapter, so each adapter's tokens are one *run*. Short runs (decoding rows) go
through one batched GEMM over pages; long ones (prompts) through a GEMM each. Tokens of the bare base come first and
are never touched: mixed adapters cost the base nothing, and the base costs them nothing.

Which adapter owns which page is ``residency``'s decision; this file only computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from graftwork.server.engine.host_adapter import RANK_PAGE, LinearGraft

if TYPE_CHECKING:
    from graftwork.server.engine.grafting import PackedAdapter

#: Runs of at least this many tokens are worth a GEMM of their own.
LONG_RUN = 32


@dataclass(frozen=True, slots=True)
class Run:
    """Tokens start..stop of the step belong to one adapter, which owns ``pages``."""

    start: int
    stop: int
    digest: str
    pages: tuple[int, ...]


class LoraPlan:
    """A step's runs, sorted as the tokens are, and the index tensors that all modules share."""

    def __init__(self, runs: Sequence[Run], device: torch.device) -> None:
        self.runs = runs
        self.long = [run for run in runs if run.stop - run.start >= LONG_RUN]
        self.short: ShortRuns | None = None
        if short := [run for run in runs if run.stop - run.start < LONG_RUN]:
            self.short = ShortRuns(short, device)


class ShortRuns:
    """Short runs as one batch of page-sized GEMMs: group g is (a run, one of its pages).

    ``pages`` is a slice of the tables when the groups' pages lie side by side, else an index to gather. ``gather``
    [G·m] picks the input rows, padded to the longest run; ``None`` when the runs are equally long and lie side by
    side, as they mostly do when everybody decodes. ``keep`` and ``rows`` put results back: row rows[i] gets result
    keep[i].
    """

    def __init__(self, runs: Sequence[Run], device: torch.device) -> None:
        groups = sorted((page, run.start, run.stop) for run in runs for page in run.pages)
        pages = [page for page, _, _ in groups]
        self.num_groups = len(groups)
        self.longest = max(stop - start for _, start, stop in groups)
        side_by_side = pages == list(range(pages[0], pages[0] + len(pages)))
        self.pages: slice | Tensor = (
            slice(pages[0], pages[0] + len(pages)) if side_by_side else torch.tensor(pages, device=device)
        )
        self.span = slice(groups[0][1], groups[0][1] + self.num_groups * self.longest)
        starts = [start for _, start, _ in groups]
        self.gather: Tensor | None = None
        self.keep: Tensor | None = None
        self.rows: Tensor | None = None
        even = all(stop - start == self.longest for _, start, stop in groups)
        if not even or starts != list(range(starts[0], starts[0] + len(starts) * self.longest, self.longest)):
            gather, keep, rows = [], [], []
            for index, (_, start, stop) in enumerate(groups):
                for offset in range(self.longest):
                    gather.append(min(start + offset, stop - 1))
                    if start + offset < stop:
                        keep.append(index * self.longest + offset)
                        rows.append(start + offset)
            self.gather = torch.tensor(gather, device=device)
            self.keep = torch.tensor(keep, device=device)
            self.rows = torch.tensor(rows, device=device)

    def take(self, x: Tensor) -> Tensor:
        """[T, in] → [G, m, in]"""
        rows = x[self.span] if self.gather is None else x.index_select(0, self.gather)
        return rows.view(self.num_groups, self.longest, x.shape[1])

    def take_pages(self, table: Tensor) -> Tensor:
        """[P, r, n] → [G, r, n]"""
        return table[self.pages] if isinstance(self.pages, slice) else table.index_select(0, self.pages)

    def put(self, y: Tensor, result: Tensor) -> None:
        """Add [G, m, out] to the rows of y [T, out] they belong to."""
        flat = result.reshape(-1, result.shape[2]).to(y.dtype)
        if self.rows is None or self.keep is None:
            y[self.span] += flat
        else:
            y.index_add_(0, self.rows, flat.index_select(0, self.keep))


@dataclass(slots=True)
class Extras:
    """What an adapter does to a linear layer beside B·A: DoRA's column scale, a bias, or a whole other weight."""

    column_scale: Tensor | None = None
    bias: Tensor | None = None
    replacement: tuple[Tensor, Tensor | None] | None = None


class LoraTable:
    """All resident adapters' grafts on sibling linear layers that read one input.

    ``a`` is [P, members·RANK_PAGE, in]: the siblings' A matrices share one GEMM. ``b[j]`` is [P, RANK_PAGE, out_j], or
    ``None`` while no adapter has touched member j.
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
        """Copy an adapter's grafts on the members to its pages; what it does not touch is zero there."""
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
        """y [T, out] += B·A·x for every run of the plan, x [T, in]."""
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
        return sum(t.nbytes for t in (self.a, *self.b) if t is not None)


def _add_product(y: Tensor, h: Tensor, b: Tensor) -> None:
    """y += h·b, in one pass over y where the dtypes allow it."""
    if y.dtype == b.dtype:
        y.addmm_(h, b)
    else:
        y += (h @ b).to(y.dtype)


class LoraBank:
    """The tables of all grafted modules, and the plan of the step that is being computed."""

    def __init__(self, *, num_pages: int, dtype: torch.dtype, device: torch.device) -> None:
        self.num_pages = num_pages
        self.dtype = dtype
        self.device = device
        self.host: dict[str, PackedAdapter] = {}
        self.plan: LoraPlan | None = None
        self.head_plan: LoraPlan | None = None

    def new_table(self, num_inputs: int, slices: Sequence[slice]) -> LoraTable:
        return LoraTable(
            num_pages=self.num_pages, num_inputs=num_inputs, slices=slices, dtype=self.dtype, device=self.device
        )
