"""Computes one step on the device: takes what the scheduler chose, lays it out as a batch, runs the model, returns
logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graftwork.server.engine.batch import Forward, build_batch, slot_of, sort_by_adapter
from graftwork.server.engine.kv.cache import KVCache
from graftwork.server.engine.kv.prefix_cache import SlotMove
from graftwork.server.engine.lora.bank import LoraBank
from graftwork.server.engine.model.layers import Grafts
from graftwork.server.engine.sequence import ScheduledTokens


@dataclass(frozen=True, slots=True)
class StepOutput:
    """Logits of a step, [R, V]. ``rows[i]`` are the rows of ``work[i]``: the last chooses the next token."""

    logits: Tensor
    scheduled: list[ScheduledTokens]
    rows: list[range]


class Runner:
    """``forward`` can do everything; ``decoder``, where there is one, is the quick way for all that adapters mostly do.

    Rows do not see each other but through the cache, so a step may go both ways, and a row always goes its own.
    """

    def __init__(
        self, forward: Forward, decoder: Forward | None, grafts: Grafts, bank: LoraBank, cache: KVCache
    ) -> None:
        self.forward = forward
        self.fast_path = decoder
        self.grafts = grafts
        self.bank = bank
        self.cache = cache

    @torch.inference_mode()
    def apply_moves(self, moves: Sequence[SlotMove]) -> None:
        """Bring slots into the state that the next ``run`` builds upon, in this order."""
        for move in moves:
            self.cache.apply_move(move)

    @torch.inference_mode()
    def run(self, work: Sequence[ScheduledTokens]) -> StepOutput:
        """Compute every token of ``work`` (not empty), which must hold slots and seats."""
        ordered = sort_by_adapter(work)
        for item in ordered:
            if item.start == 0:
                self.cache.reset(slot_of(item))
            self.cache.extend(slot_of(item), item.start + item.count)
        quick: list[ScheduledTokens] = []
        rest: list[ScheduledTokens] = []
        for item in ordered:
            (rest if self.fast_path is None or self._is_special(item) else quick).append(item)
        logits: list[Tensor] = []
        ranges: list[range] = []
        for forward, items in ((self.fast_path, quick), (self.forward, rest)):
            if forward is not None and items:
                rows = build_batch(items, ranges)
                logits.append(forward(rows))
        return StepOutput(torch.cat(logits) if len(logits) > 1 else logits[0], [*quick, *rest], ranges)

    def _is_special(self, item: ScheduledTokens) -> bool:
        seat = item.sequence.cached_adapter
        return seat is not None and seat.digest in self.grafts.special
