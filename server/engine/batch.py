"""The tokens of one step as one packed row: what they are, where they stand, whose they are, and which of them need
logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from graftwork.server.engine.lora.plan import LONG_RUN, AdapterRun
from graftwork.server.engine.sequence import ScheduledTokens


def build_batch(items: Sequence[ScheduledTokens], ranges: list[range]) -> Batch:
    """Lay the tokens of ``items`` side by side; append to ``ranges`` which rows of the step's logits are whose."""
    rows = Batch(runs=_runs(items))
    first_kept = ranges[-1].stop if ranges else 0
    for item in items:
        first, stop = len(rows.tokens), item.start + item.count
        rows.tokens += item.sequence.tokens[item.start : stop]
        rows.positions += range(item.start, stop)
        rows.slots += [slot_of(item)] * item.count
        if item.count == 1 and item.start > 0:
            rows.decoding.append(DecodeRow(first, slot_of(item), stop))
        else:
            rows.chunks.append(PrefillChunk(first, item.count, slot_of(item), item.start))
        num_kept = item.count if item.sequence.request.sampling.prompt_logprobs is not None else int(item.needs_sample)
        ranges.append(range(first_kept + len(rows.logits_indices), first_kept + len(rows.logits_indices) + num_kept))
        rows.logits_indices += range(len(rows.tokens) - num_kept, len(rows.tokens))
    return rows


def slot_of(item: ScheduledTokens) -> int:
    if item.sequence.slot is None:
        raise RuntimeError(f"{item.sequence.request.id} was scheduled without a slot")
    return item.sequence.slot


def sort_by_adapter(work: Sequence[ScheduledTokens]) -> list[ScheduledTokens]:
    """Bare base first, then adapters with few tokens in the order of their pages, then those with many."""
    totals: dict[str | None, int] = {}
    for item in work:
        digest = item.sequence.request.adapter
        totals[digest] = totals.get(digest, 0) + item.count

    def key(item: ScheduledTokens) -> tuple[int, int, int]:
        seat = item.sequence.cached_adapter
        if seat is None:
            return (0, 0, item.sequence.arrival_index)
        return (2 if totals[seat.digest] >= LONG_RUN else 1, seat.pages[0], item.sequence.arrival_index)

    return sorted(work, key=key)


def _runs(ordered: Sequence[ScheduledTokens]) -> list[AdapterRun]:
    runs: list[AdapterRun] = []
    token = 0
    for item in ordered:
        seat = item.sequence.cached_adapter
        stop = token + item.count
        if seat is not None:
            if runs and runs[-1].digest == seat.digest:
                runs[-1] = AdapterRun(runs[-1].start, stop, seat.digest, seat.pages)
            else:
                runs.append(AdapterRun(token, stop, seat.digest, seat.pages))
        token = stop
    return runs


@dataclass(slots=True)
class Batch:
    """The tokens of a step: what they are, where they stand, whose they are. ``kept`` are those whose logits count."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    logits_indices: list[int] = field(default_factory=list)
    decoding: list[DecodeRow] = field(default_factory=list)
    chunks: list[PrefillChunk] = field(default_factory=list)
    runs: list[AdapterRun] = field(default_factory=list)

    def head_runs(self) -> list[AdapterRun]:
        """The same runs over the rows that reach the head."""
        runs = []
        for run in self.runs:
            inside = [i for i, token in enumerate(self.logits_indices) if run.start <= token < run.stop]
            if inside:
                runs.append(AdapterRun(inside[0], inside[-1] + 1, run.digest, run.pages))
        return runs


class Forward(Protocol):
    """Computes a step's tokens, writes their keys and values to the cache, returns the kept rows' logits [R, V]."""

    def __call__(self, rows: Batch) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class DecodeRow:
    """One token of a sequence: its place in the packed step, its slot, and the cache length including it."""

    token: int
    slot: int
    length: int


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Tokens ``token .. token+count`` of the step are positions ``start .. start+count`` of ``slot``'s sequence."""

    token: int
    count: int
    slot: int
    start: int
