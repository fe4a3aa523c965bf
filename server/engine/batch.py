"""The tokens of one step as one packed row: what they are, where they stand, whose they are, and which of them need
logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from graftwork.server.engine.lora.plan import LONG_RUN, Run
from graftwork.server.engine.sequence import Work


def _rows(items: Sequence[Work], ranges: list[range]) -> Rows:
    """Lay the tokens of ``items`` side by side; append to ``ranges`` which rows of the step's logits are whose."""
    rows = Rows(runs=_runs(items))
    first_kept = ranges[-1].stop if ranges else 0
    for item in items:
        first, stop = len(rows.tokens), item.start + item.count
        rows.tokens += item.sequence.tokens[item.start : stop]
        rows.positions += range(item.start, stop)
        rows.slots += [_slot(item)] * item.count
        if item.count == 1 and item.start > 0:
            rows.decoding.append(DecodeRow(first, _slot(item), stop))
        else:
            rows.chunks.append(Chunk(first, item.count, _slot(item), item.start))
        num_kept = item.count if item.sequence.request.sampling.prompt_logprobs is not None else int(item.completes)
        ranges.append(range(first_kept + len(rows.kept), first_kept + len(rows.kept) + num_kept))
        rows.kept += range(len(rows.tokens) - num_kept, len(rows.tokens))
    return rows


def _slot(item: Work) -> int:
    if item.sequence.slot is None:
        raise RuntimeError(f"{item.sequence.request.id} was scheduled without a slot")
    return item.sequence.slot


def _sorted_by_adapter(work: Sequence[Work]) -> list[Work]:
    """Bare base first, then adapters with few tokens in the order of their pages, then those with many."""
    totals: dict[str | None, int] = {}
    for item in work:
        digest = item.sequence.request.adapter
        totals[digest] = totals.get(digest, 0) + item.count

    def key(item: Work) -> tuple[int, int, int]:
        seat = item.sequence.seat
        if seat is None:
            return (0, 0, item.sequence.order)
        return (2 if totals[seat.digest] >= LONG_RUN else 1, seat.pages[0], item.sequence.order)

    return sorted(work, key=key)


def _runs(ordered: Sequence[Work]) -> list[Run]:
    runs: list[Run] = []
    token = 0
    for item in ordered:
        seat = item.sequence.seat
        stop = token + item.count
        if seat is not None:
            if runs and runs[-1].digest == seat.digest:
                runs[-1] = Run(runs[-1].start, stop, seat.digest, seat.pages)
            else:
                runs.append(Run(token, stop, seat.digest, seat.pages))
        token = stop
    return runs


@dataclass(slots=True)
class Rows:
    """The tokens of a step: what they are, where they stand, whose they are. ``kept`` are those whose logits count."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    decoding: list[DecodeRow] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)

    def runs_at_head(self) -> list[Run]:
        """The same runs over the rows that reach the head."""
        runs = []
        for run in self.runs:
            inside = [i for i, token in enumerate(self.kept) if run.start <= token < run.stop]
            if inside:
                runs.append(Run(inside[0], inside[-1] + 1, run.digest, run.pages))
        return runs


class Forward(Protocol):
    """Computes a step's tokens, writes their keys and values to the cache, returns the kept rows' logits [R, V]."""

    def __call__(self, rows: Rows) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class DecodeRow:
    """One token of a sequence: its place in the packed step, its slot, and the cache length including it."""

    token: int
    slot: int
    length: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens ``token .. token+count`` of the step are positions ``start .. start+count`` of ``slot``'s sequence."""

    token: int
    count: int
    slot: int
    start: int
