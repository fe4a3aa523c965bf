"""A linear layer's weight as it is stored: full, 8-bit or NF4, multiplied by plain torch.

Shapes: ``x`` [T, in], result [T, out]; T rows are tokens of any requests. No bias, no adapters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from graftwork.server.engine.model.numerics import Numerics

#: The most tokens of one 8-bit GEMM.
BLOCK_ROWS = 64


def padded_rows(num_rows: int) -> int:
    """``num_rows`` rounded up to a power of two, above BLOCK_ROWS to a multiple of it.

    oneDNN compiles a kernel for every number of rows that it has not seen, which takes longer than many a step. So only
    a few numbers occur, all of them compiled at the start.
    """
    if num_rows >= BLOCK_ROWS:
        return -(-num_rows // BLOCK_ROWS) * BLOCK_ROWS
    return 1 << (num_rows - 1).bit_length()


class Weights(ABC):
    """The weight of a linear layer, in the format in which it is stored."""

    @abstractmethod
    def matmul(self, x: Tensor) -> Tensor:
        """``x @ W.T``: [T, in] → [T, out], in the activations' dtype."""

    @abstractmethod
    def dense(self) -> Tensor:
        """The weight as it acts, [out, in] float32; DoRA's norms are computed from it."""

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Size of the weight as it is stored."""

    def warm_up(self, num_inputs: int, max_rows: int, dtype: torch.dtype) -> None:
        """Compile the kernels of every number of rows up to ``max_rows``, before a request waits for them."""
        sizes = {padded_rows(rows) for rows in range(1, max_rows + 1)}
        for rows in sizes:
            self.matmul(torch.zeros(rows, num_inputs, dtype=dtype))


class FullWeights(Weights):
    """A weight [out, in] in the activations' dtype."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def matmul(self, x: Tensor) -> Tensor:
        """``x @ W.T``; bfloat16 rows are padded on a CPU."""
        num_rows = x.shape[0]
        if x.dtype != torch.bfloat16 or x.device.type != "cpu" or num_rows == padded_rows(num_rows):
            return F.linear(x, self.weight)
        return F.linear(F.pad(x, (0, 0, 0, padded_rows(num_rows) - num_rows)), self.weight)[:num_rows]

    def dense(self) -> Tensor:
        """The weight in float32."""
        return self.weight.float()

    @property
    def num_bytes(self) -> int:
        """Size of the weight."""
        return self.weight.nbytes


class Int8Weights(Weights):
    """8 bits a weight with a scale per output; activations in two 8-bit digits with a scale per token; int32 sums.

    A token's activations are ``scale · (high + low / 254)``, both digits int8: about 15 bits, so the weights' rounding
    is the only one that matters, and a float32 bit that differs between batches cannot change an 8-bit rounding
    (with one digit it does, and two batches of the same request drift 0.1 to 0.2 apart in log-probability). Both digits
    are rows of one GEMM, which reads the weights once; its integer sums are exact, whatever else is in the batch.
    """

    def __init__(self, weight: Tensor) -> None:
        weight = weight.float()
        self.scale = weight.abs().amax(1).clamp_(min=1e-10) / 127
        self.weight_t = torch.round(weight / self.scale[:, None]).to(torch.int8).t()

    def matmul(self, x: Tensor) -> Tensor:
        """``x @ W.T`` in blocks of BLOCK_ROWS tokens. float32."""
        if x.shape[0] <= BLOCK_ROWS:
            return self._multiply(x)
        return torch.cat([self._multiply(block) for block in torch.split(x, BLOCK_ROWS)])

    def _multiply(self, x: Tensor) -> Tensor:
        """At most BLOCK_ROWS tokens; the rows that pad them are computed and discarded."""
        num_tokens, padded = x.shape[0], padded_rows(x.shape[0])
        token_scale = x.abs().amax(1, keepdim=True).float().mul_(1 / 127).clamp_(min=1e-10)
        scaled = x / token_scale
        high = scaled.round()
        digits = torch.empty(2 * padded, x.shape[1], dtype=torch.int8)
        digits[:num_tokens] = high
        digits[padded : padded + num_tokens] = scaled.sub_(high).mul_(254).round_()
        sums = torch._int_mm(digits, self.weight_t)
        high_sums, low_sums = sums[:num_tokens].to(torch.float32), sums[padded : padded + num_tokens].to(torch.float32)
        return high_sums.add_(low_sums, alpha=1 / 254).mul_(token_scale).mul_(self.scale)

    def dense(self) -> Tensor:
        """The dequantized weight, [out, in] float32."""
        return self.weight_t.t().float() * self.scale[:, None]

    @property
    def num_bytes(self) -> int:
        """Size of the weight and its scales."""
        return self.weight_t.nbytes + self.scale.nbytes


class NF4Weights(Weights):
    """4-bit NormalFloat with double quantization (Dettmers et al. 2023, QLoRA), by bitsandbytes.

    Siblings are quantized one by one, not stacked: double quantization looks at a whole weight, and only so are the
    values equal to those that a QLoRA training used.
    """

    def __init__(self, weights: Sequence[Tensor], dtype: torch.dtype) -> None:
        from bitsandbytes import functional as bnb

        self.parts = [
            bnb.quantize_4bit(weight.to(dtype).contiguous(), quant_type="nf4", compress_statistics=True)
            for weight in weights
        ]

    def matmul(self, x: Tensor) -> Tensor:
        """``x @ W.T``, one product per sibling."""
        import bitsandbytes as bnb

        return torch.cat([bnb.matmul_4bit(x, packed.t(), quant_state=state) for packed, state in self.parts], dim=1)

    def dense(self) -> Tensor:
        """The dequantized weight, [out of all siblings, in] float32."""
        from bitsandbytes import functional as bnb

        return torch.cat([bnb.dequantize_4bit(packed, state) for packed, state in self.parts]).float()

    @property
    def num_bytes(self) -> int:
        """Size of the packed weights and their quantization states."""
        return sum(int(packed.nbytes + state.absmax.nbytes) for packed, state in self.parts)


def quantize_weights(weights: Sequence[Tensor], numerics: Numerics) -> Weights:
    """Sibling weights [out_i, in] that read the same input, stacked, in the chosen format."""
    stacked = torch.cat(list(weights)) if len(weights) > 1 else weights[0]  # alone it may stay tied to the embedding
    match numerics.quantize:
        case "int8":
            return Int8Weights(stacked)
        case "nf4":
            return NF4Weights([weight.to(numerics.device) for weight in weights], numerics.dtype)
        case "none":
            return FullWeights(stacked.to(device=numerics.device, dtype=numerics.dtype))
