"""From a step's tokens to logits, through HF's own modules: the path that serves every architecture and every adapter.

Shapes: T tokens in one packed row, R of them kept for the head, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from graftwork.server.engine.attention import AttentionPlan, Chunk, DecodeRow
from graftwork.server.engine.kv_cache import KVCache
from graftwork.server.engine.lora_bank import LoraBank, LoraPlan, Run


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


class ModelForward:
    def __init__(self, model: nn.Module, bank: LoraBank, cache: KVCache) -> None:
        self.model = model
        self.bank = bank
        self.cache = cache
        self.device = cache.shape.device

    def __call__(self, rows: Rows) -> Tensor:
        where = torch.tensor([rows.positions, rows.slots], device=self.device)
        plan = AttentionPlan(self.cache, rows.decoding, rows.chunks, where[0], where[1])
        self.bank.plan = self._plan(rows.runs)
        self.bank.head_plan = self._plan(rows.runs_at_head())
        try:
            logits: Tensor = self.model(
                input_ids=torch.tensor([rows.tokens], device=self.device),
                position_ids=where[0][None],
                use_cache=False,
                logits_to_keep=torch.tensor(rows.kept or [0], device=self.device),
                graft_attention=plan,
            ).logits[0]
        finally:
            self.bank.plan = self.bank.head_plan = None
        return logits[: len(rows.kept)]

    def _plan(self, runs: Sequence[Run]) -> LoraPlan | None:
        return LoraPlan(runs, self.device) if runs else None
