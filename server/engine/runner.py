"""One step on the device: the scheduler's work goes through the model as one packed row of tokens; logits come back.

The runner owns the model, the key-value cache and the bank's tensors. It does not decide anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from graftwork.server.engine.attention import AttentionPlan, Chunk, DecodeRow
from graftwork.server.engine.grafting import Grafts
from graftwork.server.engine.kv_cache import KVCache
from graftwork.server.engine.lora_bank import LONG_RUN, LoraBank, LoraPlan, Run
from graftwork.server.engine.prefix_cache import Move
from graftwork.server.engine.scheduler import Work


@dataclass(frozen=True, slots=True)
class Output:
    """Logits of a step, [R, V]. ``rows[i]`` are the rows of ``work[i]``: the last chooses the next token."""

    logits: Tensor
    work: list[Work]
    rows: list[range]


class Runner:
    def __init__(self, model: nn.Module, grafts: Grafts, bank: LoraBank, cache: KVCache) -> None:
        self.model = model
        self.grafts = grafts
        self.bank = bank
        self.cache = cache
        self.device = cache.shape.device

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
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        kept: list[int] = []
        rows: list[range] = []
        decoding: list[DecodeRow] = []
        chunks: list[Chunk] = []
        for item in ordered:
            first, stop = len(tokens), item.start + item.count
            tokens += item.sequence.tokens[item.start : stop]
            positions += range(item.start, stop)
            slots += [_slot(item)] * item.count
            if item.count == 1 and item.start > 0:
                decoding.append(DecodeRow(first, _slot(item), stop))
            else:
                chunks.append(Chunk(first, item.count, _slot(item), item.start))
            num_kept = item.count if item.sequence.request.sampling.prompt_logprobs is not None else int(item.completes)
            rows.append(range(len(kept), len(kept) + num_kept))
            kept += range(len(tokens) - num_kept, len(tokens))
        where = torch.tensor([positions, slots], device=self.device)
        plan = AttentionPlan(self.cache, decoding, chunks, where[0], where[1])
        runs = _runs(ordered)
        self.bank.plan = LoraPlan(runs, self.device) if runs else None
        self.bank.head_plan = self._head_plan(runs, kept or [len(tokens) - 1])
        try:
            logits: Tensor = self.model(
                input_ids=torch.tensor([tokens], device=self.device),
                position_ids=where[0][None],
                use_cache=False,
                logits_to_keep=torch.tensor(kept or [len(tokens) - 1], device=self.device),
                graft_attention=plan,
            ).logits[0]
        finally:
            self.bank.plan = self.bank.head_plan = None
        return Output(logits, ordered, rows)

    def _head_plan(self, runs: Sequence[Run], kept: Sequence[int]) -> LoraPlan | None:
        """The same runs over the rows that reach the head."""
        head_runs = []
        for run in runs:
            inside = [i for i, token in enumerate(kept) if run.start <= token < run.stop]
            if inside:
                head_runs.append(Run(inside[0], inside[-1] + 1, run.digest, run.pages))
        return LoraPlan(head_runs, self.device) if head_runs else None


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
