"""The numbers a base is held and computed in: quantization, dtype, device and kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Quantize = Literal["int8", "nf4", "none"]


Kernels = Literal["native", "triton", "torch"]


@dataclass(frozen=True, kw_only=True)
class Numerics:
    """``quantize`` for the base's linear layers, ``dtype`` for everything else; ``reason`` is for the log."""

    device: torch.device
    quantize: Quantize
    dtype: torch.dtype
    kernels: Kernels
    reason: str

    @property
    def adapter_dtype(self) -> torch.dtype:
        """What the bank holds: float32 on a CPU, where it is as fast and exact; the activations' own on a card."""
        return torch.float32 if self.device.type == "cpu" else self.dtype
