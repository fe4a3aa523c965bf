"""The batch of a step: the tokens of several sequences as one packed row.

Shapes: T tokens of a batch, R rows of logits, V vocabulary, S rows of hidden states, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from torch import Tensor

from graftwork.server.engine.lora.plan import LONG_RUN, AdapterRun
from graftwork.server.engine.sequence import ScheduledTokens


@dataclass(frozen=True, slots=True)
class DecodeRow:
    """The newest token of a sequence.

    Attributes:
        token: Its place in the packed row.
        slot: The key-value cache's slot of its sequence.
        length: Tokens in the cache, this one included.
    """

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


@dataclass(slots=True)
class Batch:
    """The tokens of a step, or of a part of it, in one packed row.

    Attributes:
        tokens: [T] token ids.
        positions: [T] their places in their sequences.
        slots: [T] the key-value cache's slots of their sequences.
        logits_indices: [R] tokens whose logits are computed, in ascending order.
        hidden_indices: [S] tokens whose hidden states are returned, in ascending order.
        decoding: Tokens that are alone of their sequence; ``chunks`` are all others.
        chunks: Several tokens of a sequence: a part of a prompt, or the newest token with drafts behind it.
        runs: Neighbours that go through the same adapter. Tokens of the bare base are in none.
        scheduled: The scheduler's items, in the order of their tokens.
        logits_ranges: For each of ``scheduled`` its rows among the R.
        hidden_ranges: For each of ``scheduled`` its rows among the S.
    """

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    logits_indices: list[int] = field(default_factory=list)
    hidden_indices: list[int] = field(default_factory=list)
    decoding: list[DecodeRow] = field(default_factory=list)
    chunks: list[PrefillChunk] = field(default_factory=list)
    runs: list[AdapterRun] = field(default_factory=list)
    scheduled: list[ScheduledTokens] = field(default_factory=list)
    logits_ranges: list[range] = field(default_factory=list)
    hidden_ranges: list[range] = field(default_factory=list)

    @classmethod
    def of(cls, scheduled: Sequence[ScheduledTokens]) -> Batch:
        """Pack scheduled tokens into one row, sorted by adapter. Every sequence must have a slot."""
        batch = cls(scheduled=_sort_by_adapter(scheduled))
        batch.runs = _runs(batch.scheduled)
        for item in batch.scheduled:
            first, slot, stop = len(batch.tokens), item.sequence.require_slot(), item.start + item.count
            batch.tokens += item.token_ids
            batch.positions += range(item.start, stop)
            batch.slots += [slot] * item.count
            if item.count == 1 and item.start > 0:
                batch.decoding.append(DecodeRow(first, slot, stop))
            else:
                batch.chunks.append(PrefillChunk(first, item.count, slot, item.start))
            offset = first - item.start
            batch.logits_ranges.append(_add(batch.logits_indices, item.logits, offset))
            batch.hidden_ranges.append(_add(batch.hidden_indices, item.hidden, offset))
        return batch

    @property
    def is_decode(self) -> bool:
        """Whether every token is its sequence's newest, with logits computed."""
        return not self.chunks and len(self.logits_indices) == len(self.tokens)

    def padded(self, num_rows: int) -> Batch:
        """A decoding batch with its last token repeated up to ``num_rows`` tokens.

        The copies compute the same, and write to the cache what is there already. Only what a captured graph reads is
        filled in.
        """
        more = num_rows - len(self.tokens)
        runs = list(self.runs)
        if runs and runs[-1].stop == len(self.tokens):
            runs[-1] = replace(runs[-1], stop=num_rows)
        return Batch(
            tokens=self.tokens + self.tokens[-1:] * more,
            positions=self.positions + self.positions[-1:] * more,
            slots=self.slots + self.slots[-1:] * more,
            runs=runs,
        )

    def head_runs(self) -> list[AdapterRun]:
        """The runs as rows of the R that reach the head, without runs that have none there."""
        runs = []
        for run in self.runs:
            inside = [i for i, token in enumerate(self.logits_indices) if run.start <= token < run.stop]
            if inside:
                runs.append(AdapterRun(inside[0], inside[-1] + 1, run.digest, run.pages))
        return runs


@dataclass(frozen=True, slots=True)
class ForwardOutput:
    """What a backend computed of a batch.

    Attributes:
        logits: [R, V] of ``batch.logits_indices``, in that order. The next call may overwrite them.
        hidden_states: [S, H] of ``batch.hidden_indices``, in that order, as the head would read them: behind the last
            norm. ``None`` where S is 0.
    """

    logits: Tensor
    hidden_states: Tensor | None = None


class Forward(Protocol):
    """A backend: computes a batch, and writes its keys and values to the cache."""

    def __call__(self, batch: Batch, /) -> ForwardOutput:
        """Compute the batch; the head for ``batch.logits_indices`` alone."""
        ...


def _add(indices: list[int], positions: range, offset: int) -> range:
    """Append the tokens at ``positions`` of a sequence that would begin at token ``offset``; returns their rows."""
    first = len(indices)
    indices += range(offset + positions.start, offset + positions.stop)
    return range(first, len(indices))


def _sort_by_adapter(scheduled: Sequence[ScheduledTokens]) -> list[ScheduledTokens]:
    """The bare base first, then adapters with few tokens in the order of their pages, then those with many."""
    totals: dict[str | None, int] = {}
    for item in scheduled:
        digest = item.sequence.request.adapter
        totals[digest] = totals.get(digest, 0) + item.count

    def key(item: ScheduledTokens) -> tuple[int, int, int]:
        adapter = item.sequence.cached_adapter
        if adapter is None:
            return (0, 0, item.sequence.arrival_index)
        return (2 if totals[adapter.digest] >= LONG_RUN else 1, adapter.pages[0], item.sequence.arrival_index)

    return sorted(scheduled, key=key)


def _runs(ordered: Sequence[ScheduledTokens]) -> list[AdapterRun]:
    runs: list[AdapterRun] = []
    token = 0
    for item in ordered:
        adapter = item.sequence.cached_adapter
        stop = token + item.count
        if adapter is not None:
            if runs and runs[-1].digest == adapter.digest:
                runs[-1] = AdapterRun(runs[-1].start, stop, adapter.digest, adapter.pages)
            else:
                runs.append(AdapterRun(token, stop, adapter.digest, adapter.pages))
        token = stop
    return runs
