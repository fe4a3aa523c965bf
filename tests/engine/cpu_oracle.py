"""A slow reference implementation of the native kernels in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 64


def rounded(x: Tensor) -> Tensor:
    """What is left of activations [..., K] in 8 bits with a scale per 64 inputs."""
    width = x.shape[-1]
    blocks = F.pad(x, (0, -width % BLOCK)).unflatten(-1, (-1, BLOCK))
    scale = blocks.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    return (torch.round(blocks / scale) * scale).flatten(-2)[..., :width]


def rounded_rows(rows: Tensor) -> Tensor:
    """What is left of weights [n, k] in 8 bits with a scale per row."""
    scale = rows.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    return torch.round(rows / scale) * scale


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [T, heads, D]; cos and sin [T, R], R <= D: only the first R of a head's numbers turn."""
    width = cos.shape[-1]
    turning, rest = x[..., :width], x[..., width:]
    low, high = turning.chunk(2, dim=-1)
    return torch.cat([turning * cos[:, None] + torch.cat([-high, low], -1) * sin[:, None], rest], -1)
