"""The numbers a base is stored and computed in: quantization, dtype, device and kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Quantize = Literal["int8", "nf4", "none"]
Kernels = Literal["native", "triton", "torch"]


@dataclass(frozen=True, kw_only=True)
class Numerics:
    """How a base is stored and computed.

    Attributes:
        device: Where it is.
        quantize: The format of the linear layers' weights.
        dtype: Of everything else.
        kernels: What computes the adapters and, on CPUs, the step.
        reason: Why this was chosen, for the log.
    """

    device: torch.device
    quantize: Quantize
    dtype: torch.dtype
    kernels: Kernels
    reason: str

    @property
    def adapter_dtype(self) -> torch.dtype:
        """The bank's dtype: float32 on a CPU, where it is as fast and exact; ``dtype`` on a GPU."""
        return torch.float32 if self.device.type == "cpu" else self.dtype
