"""Computes one step on the device: lays out what the scheduler chose as batches, and runs the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graftwork.server.engine.batch import Batch, Forward, ForwardOutput
from graftwork.server.engine.kv.cache import KVCache
from graftwork.server.engine.kv.prefix_cache import SlotMove
from graftwork.server.engine.lora.bank import LoraBank
from graftwork.server.engine.model.layers import Grafts
from graftwork.server.engine.sampler import SampleTokens
from graftwork.server.engine.sequence import ScheduledTokens


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a step computed: one batch after another, each in its order.

    Attributes:
        batches: The batches.
        logits: [R, V] of all of them.
        hidden_states: [S, H] of each of them, ``None`` where S is 0.
    """

    batches: tuple[Batch, ...]
    logits: Tensor
    hidden_states: tuple[Tensor | None, ...]

    def items(self) -> list[tuple[ScheduledTokens, range]]:
        """Each scheduled item with its rows of ``logits``."""
        items: list[tuple[ScheduledTokens, range]] = []
        first = 0
        for batch in self.batches:
            ranges = batch.logits_ranges
            if first:
                ranges = [range(first + rows.start, first + rows.stop) for rows in ranges]
            items += zip(batch.scheduled, ranges, strict=True)
            first += len(batch.logits_indices)
        return items

    def pooled(self) -> Iterator[tuple[ScheduledTokens, Tensor]]:
        """Each scheduled item that has hidden states, [count, H], with them."""
        for batch, states in zip(self.batches, self.hidden_states, strict=True):
            if states is not None:
                for item, rows in zip(batch.scheduled, batch.hidden_ranges, strict=True):
                    if rows:
                        yield item, states[rows.start : rows.stop]


class Runner:
    """Computes steps with one or two backends.

    Rows see each other only through the cache, so a step may be split between backends; a sequence always uses the
    same.

    Args:
        forward: Computes any batch.
        fast_path: Computes batches without special adapters (``Grafts.special``), faster; ``None``: there is none.
        grafts: The model's layers, to load adapters into.
        bank: The adapters on the device.
        cache: Keys and values.
    """

    def __init__(
        self,
        forward: Forward,
        fast_path: Forward | None,
        sample_tokens: SampleTokens,
        grafts: Grafts,
        bank: LoraBank,
        cache: KVCache,
    ) -> None:
        self.forward = forward
        self.fast_path = fast_path
        self.sample_tokens = sample_tokens
        self.grafts = grafts
        self.bank = bank
        self.cache = cache

    @torch.inference_mode()
    def apply_moves(self, moves: Sequence[SlotMove]) -> None:
        """Apply the prefix cache's moves, in this order, before the next ``run``."""
        for move in moves:
            self.cache.apply_move(move)

    @torch.inference_mode()
    def run(self, scheduled: Sequence[ScheduledTokens]) -> StepOutput:
        """Compute the tokens of ``scheduled`` (at least one).

        Each sequence must have its slot, and its adapter on the device.
        """
        quick: list[ScheduledTokens] = []
        rest: list[ScheduledTokens] = []
        for item in scheduled:
            slot = item.sequence.require_slot()
            if item.start == 0:
                self.cache.reset(slot)
            self.cache.extend(slot, item.start + item.count)
            (rest if self.fast_path is None or self._is_special(item) else quick).append(item)
        outputs: list[ForwardOutput] = []
        batches: list[Batch] = []
        for forward, items in ((self.fast_path, quick), (self.forward, rest)):
            if forward is not None and items:
                batches.append(Batch.of(items))
                outputs.append(forward(batches[-1]))
        logits = torch.cat([output.logits for output in outputs]) if len(outputs) > 1 else outputs[0].logits
        return StepOutput(tuple(batches), logits, tuple(output.hidden_states for output in outputs))

    def _is_special(self, item: ScheduledTokens) -> bool:
        adapter = item.sequence.cached_adapter
        return adapter is not None and adapter.digest in self.grafts.special
