"""Tests that need a GPU; they are skipped without one: ``scripts/test --gpu``."""

from __future__ import annotations

import os

import pytest
import torch

needs_card = pytest.mark.skipif(
    not torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1", reason="needs a CUDA device"
)
