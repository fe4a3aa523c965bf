"""A linear layer's weight in the numbers it is held in: full, 8-bit or NF4. One GEMM each, no bias, no adapters.

Shapes: ``x`` [T, in], result [T, out]; T rows are tokens of any requests.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from graftwork.server.engine.numerics import Numerics

#: How much of the activations' outliers moves into the weights (SmoothQuant, arXiv 2211.10438, section 3).
SMOOTHING = 0.65


class Weights(ABC):
    """What a linear layer multiplies by."""

    @abstractmethod
    def matmul(self, x: Tensor) -> Tensor:
        """``x @ W.T`` in the activations' dtype."""

    @abstractmethod
    def dense(self) -> Tensor:
        """The weight as it acts, [out, in] float32: what DoRA's norms are taken of."""

    @property
    @abstractmethod
    def num_bytes(self) -> int: ...


class FullWeights(Weights):
    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def matmul(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)

    def dense(self) -> Tensor:
        return self.weight.float()

    @property
    def num_bytes(self) -> int:
        return self.weight.nbytes


class Int8Weights(Weights):
    """8 bits a weight with a scale per output, 8 bits an activation with a scale per token, int32 sums.

    The sums are exact, so a row's result is the same whoever shares the batch. ``activation_range`` [in] is the largest
    magnitude seen at each input; channels with outliers are scaled down and their weights up, which is what keeps
    8-bit activations harmless.
    """

    def __init__(self, weight: Tensor, activation_range: Tensor) -> None:
        weight = weight.float()
        per_input = weight.abs().amax(0).clamp_(min=1e-5)
        smooth = activation_range.clamp(min=1e-5) ** SMOOTHING / per_input ** (1 - SMOOTHING)
        weight = weight * smooth
        self.inverse_smooth = 1.0 / smooth
        self.scale = weight.abs().amax(1).clamp_(min=1e-10) / 127
        self.weight_t = torch.round(weight / self.scale[:, None]).to(torch.int8).t()

    def matmul(self, x: Tensor) -> Tensor:
        x = x.float() * self.inverse_smooth
        token_scale = x.abs().amax(1, keepdim=True).mul_(1 / 127).clamp_(min=1e-10)
        sums = torch._int_mm(x.div_(token_scale).round_().to(torch.int8), self.weight_t)
        return sums.to(torch.float32).mul_(token_scale).mul_(self.scale)

    def dense(self) -> Tensor:
        return self.weight_t.t().float() * self.scale[:, None] * self.inverse_smooth

    @property
    def num_bytes(self) -> int:
        return self.weight_t.nbytes + self.scale.nbytes + self.inverse_smooth.nbytes


class NF4Weights(Weights):
    """4-bit NormalFloat with double quantization, by bitsandbytes."""

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        from bitsandbytes import functional as bnb

        self.dtype = dtype
        self.packed, self.state = bnb.quantize_4bit(
            weight.to(dtype).contiguous(), quant_type="nf4", compress_statistics=True
        )

    def matmul(self, x: Tensor) -> Tensor:
        import bitsandbytes as bnb

        return bnb.matmul_4bit(x, self.packed.t(), quant_state=self.state)

    def dense(self) -> Tensor:
        from bitsandbytes import functional as bnb

        return bnb.dequantize_4bit(self.packed, self.state).float()

    @property
    def num_bytes(self) -> int:
        return int(self.packed.nbytes + self.state.absmax.nbytes)


def hold(weights: Sequence[Tensor], numerics: Numerics, activation_range: Tensor | None) -> Weights:
    """Stack sibling weights [out_i, in] that read the same input, in the chosen numbers."""
    stacked = torch.cat(list(weights)) if len(weights) > 1 else weights[0]
    match numerics.quantize:
        case "int8":
            if activation_range is None:
                raise ValueError("int8 weights need the range of their activations")
            return Int8Weights(stacked, activation_range)
        case "nf4":
            return NF4Weights(stacked.to(numerics.device), numerics.dtype)
        case "none":
            return FullWeights(stacked.to(device=numerics.device, dtype=numerics.dtype))
