"""Tokens from logits by the native kernels: no sort of the vocabulary, and rows shared out among the threads."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from graftwork.server.engine.backends.cpu.context import KernelContext
from graftwork.server.engine.backends.cpu.interface import SamplingFields
from graftwork.server.engine.request import SamplingParams


class CpuSampler:
    """``SampleTokens`` of ``server/engine/sampler.py``."""

    def __init__(self, context: KernelContext) -> None:
        self._context = context

    def __call__(self, logits: Tensor, params: Sequence[SamplingParams], uniform: Sequence[float]) -> list[int]:
        samplings = (SamplingFields * len(params))(
            *(
                SamplingFields(row.temperature, row.top_p, row.min_p, row.top_k, at)
                for row, at in zip(params, uniform, strict=True)
            )
        )
        return self._context.sample(logits.contiguous(), samplings)
