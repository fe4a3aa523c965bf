"""Which tokens of a step use which adapter: its runs, and the index tensors that all layers share.

Tokens are sorted by adapter, so the tokens of one adapter are one *run*. Short runs (decoding rows) go through one
batched GEMM over pages, long ones (prompts) through a GEMM each. Tokens of the bare base come first and are in no run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Runs of at least this many tokens are worth a GEMM of their own.
LONG_RUN = 32


@dataclass(frozen=True, slots=True)
class AdapterRun:
    """Tokens start..stop (exclusive) of the step belong to one adapter, which owns ``pages``."""

    start: int
    stop: int
    digest: str
    pages: tuple[int, ...]


class LoraPlan:
    """A step's runs for plain torch: ``long`` ones one by one, ``short`` ones (if any) as one batch.

    ``runs`` must be sorted as the tokens are.
    """

    def __init__(self, runs: Sequence[AdapterRun], device: torch.device) -> None:
        self.runs = runs
        self.long = [run for run in runs if run.stop - run.start >= LONG_RUN]
        self.short: ShortRuns | None = None
        if short := [run for run in runs if run.stop - run.start < LONG_RUN]:
            self.short = ShortRuns(short, device)


class ShortRuns:
    """Short runs as one batch of page-sized GEMMs: each of G groups is (a run, one of its pages).

    Attributes:
        num_groups: G.
        longest: m, the tokens of the longest run.
        pages: The groups' pages: a slice of the tables when they are contiguous, else indices to gather.
        span: The input rows, when ``gather`` is ``None``.
        gather: [G·m] the input rows, padded to the longest run; ``None`` when the runs are equally long and contiguous,
            as they mostly are when every sequence decodes.
        keep: Results that are no padding, out of G·m.
        rows: ``rows[i]`` is the row of y to which result ``keep[i]`` is added.
    """

    def __init__(self, runs: Sequence[AdapterRun], device: torch.device) -> None:
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
        """The groups' input rows: [T, in] → [G, m, in]"""
        rows = x[self.span] if self.gather is None else x.index_select(0, self.gather)
        return rows.view(self.num_groups, self.longest, x.shape[1])

    def take_pages(self, table: Tensor) -> Tensor:
        """The groups' pages of a table: [P, r, n] → [G, r, n]"""
        return table[self.pages] if isinstance(self.pages, slice) else table.index_select(0, self.pages)

    def put(self, y: Tensor, result: Tensor) -> None:
        """Add results [G, m, out] to the rows of y [T, out] that they belong to."""
        flat = result.reshape(-1, result.shape[2]).to(y.dtype)
        if self.rows is None or self.keep is None:
            y[self.span] += flat
        else:
            y.index_add_(0, self.rows, flat.index_select(0, self.keep))
