"""Computes one step on the device: takes what the scheduler chose, lays it out as a batch, runs the model, returns
logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graftwork.server.engine.batch import Forward, _rows, _slot, _sorted_by_adapter
from graftwork.server.engine.kv.cache import KVCache
from graftwork.server.engine.kv.prefix_cache import Move
from graftwork.server.engine.lora.bank import LoraBank
from graftwork.server.engine.model.layers import Grafts
from graftwork.server.engine.sequence import Work


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
