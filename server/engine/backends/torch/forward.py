"""Computes a batch through Hugging Face's own modules: every architecture and every adapter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from graftwork.server.engine.backends.torch.attention import AttentionPlan
from graftwork.server.engine.batch import Batch, ForwardOutput
from graftwork.server.engine.kv.cache import KVCache
from graftwork.server.engine.lora.bank import LoraBank
from graftwork.server.engine.lora.plan import AdapterRun, LoraPlan
from graftwork.server.engine.model.causal_lm import CausalLM


class TorchForward:
    """A ``Forward`` through HF's modules.

    Args:
        model: HF's model, with its layers replaced by ``graft_onto``.
        bank: The adapters on the device; its ``plan`` is set during a call.
        cache: On the same device.
    """

    def __init__(self, model: nn.Module, bank: LoraBank, cache: KVCache) -> None:
        self.model = CausalLM(model)
        self.bank = bank
        self.cache = cache
        self.device = cache.shape.device

    def __call__(self, rows: Batch) -> ForwardOutput:
        where = torch.tensor([rows.positions, rows.slots], device=self.device)
        plan = AttentionPlan(self.cache, rows.decoding, rows.chunks, where[0], where[1])
        self.bank.plan = self._plan(rows.runs)
        self.bank.head_plan = self._plan(rows.head_runs())
        try:
            return self.model(
                torch.tensor(rows.tokens, device=self.device),
                where[0],
                plan,
                logits_at=self._indices(rows.logits_indices),
                hidden_at=self._indices(rows.hidden_indices),
            )
        finally:
            self.bank.plan = self.bank.head_plan = None

    def _indices(self, indices: Sequence[int]) -> Tensor:
        return torch.tensor(indices, dtype=torch.long, device=self.device)

    def _plan(self, runs: Sequence[AdapterRun]) -> LoraPlan | None:
        return LoraPlan(runs, self.device) if runs else None
