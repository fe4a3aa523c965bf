"""The dtype that a forward pass is computed in, on the device that there is."""

from __future__ import annotations

import torch

from graftwork.training.config import TrainConfig


def compute_precision(config: TrainConfig, device: str | None = None) -> str:
    """Torch's name of what is computed in, on ``device`` or on the one that there is."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if config.precision != "auto":
        return config.precision
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "float32"
