"""The dtype of the forward pass."""

from __future__ import annotations

import torch

from graftwork.training.config import TrainConfig


def compute_precision(config: TrainConfig, device: str | None = None) -> str:
    """Return torch's name of the dtype of the forward pass.

    ``auto`` is bfloat16 where the device supports it in hardware, else float32.

    Args:
        config: the configuration of the run.
        device: ``cuda`` or ``cpu``; the available one by default.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if config.precision != "auto":
        return config.precision
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "float32"
