"""From a batch to logits through Hugging Face's own modules: computes every architecture and every adapter.

Shapes: T tokens in one packed row, R of them that reach the head, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from graftwork.server.engine.backends.torch.attention import AttentionPlan
from graftwork.server.engine.batch import Batch
from graftwork.server.engine.kv.cache import KVCache
from graftwork.server.engine.lora.bank import LoraBank
from graftwork.server.engine.lora.plan import AdapterRun, LoraPlan


class TorchForward:
    """A ``Forward`` through HF's modules.

    Args:
        model: HF's model, with its layers replaced by ``graft_onto``.
        bank: The adapters on the device; its ``plan`` is set during a call.
        cache: On the same device.
    """

    def __init__(self, model: nn.Module, bank: LoraBank, cache: KVCache) -> None:
        self.model = model
        self.bank = bank
        self.cache = cache
        self.device = cache.shape.device

    def __call__(self, rows: Batch) -> Tensor:
        where = torch.tensor([rows.positions, rows.slots], device=self.device)
        plan = AttentionPlan(self.cache, rows.decoding, rows.chunks, where[0], where[1])
        self.bank.plan = self._plan(rows.runs)
        self.bank.head_plan = self._plan(rows.head_runs())
        try:
            logits: Tensor = self.model(
                input_ids=torch.tensor([rows.tokens], device=self.device),
                position_ids=where[0][None],
                use_cache=False,
                logits_to_keep=torch.tensor(rows.logits_indices or [0], device=self.device),
                graft_attention=plan,
            ).logits[0]
        finally:
            self.bank.plan = self.bank.head_plan = None
        return logits[: len(rows.logits_indices)]

    def _plan(self, runs: Sequence[AdapterRun]) -> LoraPlan | None:
        return LoraPlan(runs, self.device) if runs else None
