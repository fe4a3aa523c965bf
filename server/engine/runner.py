"""One step on the device: the scheduler's work goes through the model as one packed row of tokens; logits come back.

The runner owns the model, the key-value cache and the bank's tensors. It does not decide anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graftwork.server.engine.attention import Chunk, DecodeRow
from graftwork.server.engine.forward import Forward, Rows
from graftwork.server.engine.grafting import Grafts
from graftwork.server.engine.kv_cache import KVCache
from graftwork.server.engine.lora_bank import LONG_RUN, LoraBank, Run
from graftwork.server.engine.prefix_cache import Move
from graftwork.server.engine.scheduler import Work


@dataclass(frozen=True, slots=True)
class Output:
    """Logits of a step, [R, V]. ``rows[i]`` are the rows of ``work[i]``: the last chooses the next token."""

    logits: Tensor
    work: list[Work]
    rows: list[range]


class Runner:
    """``forward`` can do everything; ``decoder``, where there is one, is the quick way for all that adapters mostly do.

    Rows do not see each other but through the cache, so a step may go both ways, and a row always goes its own.
    """

    def __init__(
        self, forward: Forward, decoder: Forward | None, grafts: Grafts, bank: LoraBank, cache: KVCache
    ) -> None:
        self.forward = forward
        self.decoder = decoder
        self.grafts = grafts
        self.bank = bank
        self.cache = cache

    @torch.inference_mode()
    def arrange(self, moves: Sequence[Move]) -> None:
        """Bring slots into the state that the next ``run`` builds upon, in this order."""
        for move in moves:
            self.cache.arrange(move)

    @torch.inference_mode()
    def run(self, work: Sequence[Work]) -> Output:
        """Compute every token of ``work`` (not empty), which must hold slots and seats."""
        ordered = _sorted_by_adapter(work)
        for item in ordered:
            if item.start == 0:
                self.cache.claim(_slot(item))
            self.cache.extend(_slot(item), item.start + item.count)
        quick: list[Work] = []
        rest: list[Work] = []
        for item in ordered:
            (rest if self.decoder is None or self._is_special(item) else quick).append(item)
        logits: list[Tensor] = []
        ranges: list[range] = []
        for forward, items in ((self.decoder, quick), (self.forward, rest)):
            if forward is not None and items:
                rows = _rows(items, ranges)
                logits.append(forward(rows))
        return Output(torch.cat(logits) if len(logits) > 1 else logits[0], [*quick, *rest], ranges)

    def _is_special(self, item: Work) -> bool:
        seat = item.sequence.seat
        return seat is not None and seat.digest in self.grafts.special


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
