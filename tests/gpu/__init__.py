"""What only a card can show. Skips by itself where there is none: ``scripts/test --gpu``."""

from __future__ import annotations

import os

import pytest
import torch

needs_card = pytest.mark.skipif(
    not torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1", reason="needs a CUDA device"
)
