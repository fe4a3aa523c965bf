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
    """8 bits a weight with a scale per output; activations in two 8-bit digits with a scale per token; int32 sums.

    A token's activations are ``scale · (high + low / 254)``, both digits int8: about 15 bits, so the weights' rounding
    is the only one that shows, and a float32 bit that differs between batches cannot tip an 8-bit rounding over
    (with one digit it does, and two batches of the same request drift 0.1 to 0.2 apart in log-probability). Both digits
    are rows of one GEMM, which reads the weights once; its integer sums are exact, whoever shares the batch.
    """

    def __init__(self, weight: Tensor) -> None:
        weight = weight.float()
        self.scale = weight.abs().amax(1).clamp_(min=1e-10) / 127
        self.weight_t = torch.round(weight / self.scale[:, None]).to(torch.int8).t()

    def matmul(self, x: Tensor) -> Tensor:
        num_tokens = x.shape[0]
        token_scale = x.abs().amax(1, keepdim=True).float().mul_(1 / 127).clamp_(min=1e-10)
        scaled = x / token_scale
        high = scaled.round()
        digits = torch.empty(2 * num_tokens, x.shape[1], dtype=torch.int8)
        digits[:num_tokens] = high
        digits[num_tokens:] = scaled.sub_(high).mul_(254).round_()
        sums = torch._int_mm(digits, self.weight_t).to(torch.float32)
        return torch.add(sums[:num_tokens], sums[num_tokens:], alpha=1 / 254).mul_(token_scale).mul_(self.scale)

    def dense(self) -> Tensor:
        return self.weight_t.t().float() * self.scale[:, None]

    @property
    def num_bytes(self) -> int:
        return self.weight_t.nbytes + self.scale.nbytes


class NF4Weights(Weights):
    """4-bit NormalFloat with double quantization, by bitsandbytes.

    Siblings are quantized one by one, not stacked: double quantization looks at a whole weight, and only so are the
    numbers those that a QLoRA training saw.
    """

    def __init__(self, weights: Sequence[Tensor], dtype: torch.dtype) -> None:
        from bitsandbytes import functional as bnb

        self.parts = [
            bnb.quantize_4bit(weight.to(dtype).contiguous(), quant_type="nf4", compress_statistics=True)
            for weight in weights
        ]

    def matmul(self, x: Tensor) -> Tensor:
        import bitsandbytes as bnb

        return torch.cat([bnb.matmul_4bit(x, packed.t(), quant_state=state) for packed, state in self.parts], dim=1)

    def dense(self) -> Tensor:
        from bitsandbytes import functional as bnb

        return torch.cat([bnb.dequantize_4bit(packed, state) for packed, state in self.parts]).float()

    @property
    def num_bytes(self) -> int:
        return sum(int(packed.nbytes + state.absmax.nbytes) for packed, state in self.parts)


def hold(weights: Sequence[Tensor], numerics: Numerics) -> Weights:
    """Sibling weights [out_i, in] that read the same input, as one, in the chosen numbers."""
    stacked = torch.cat(list(weights)) if len(weights) > 1 else weights[0]  # alone it may stay tied to the embedding
    match numerics.quantize:
        case "int8":
            return Int8Weights(stacked)
        case "nf4":
            return NF4Weights([weight.to(numerics.device) for weight in weights], numerics.dtype)
        case "none":
            return FullWeights(stacked.to(device=numerics.device, dtype=numerics.dtype))
