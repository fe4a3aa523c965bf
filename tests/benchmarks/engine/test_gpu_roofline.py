"""The roofline equals the numbers in docs/gpu.md; measuring without a GPU is refused with a message."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from benchmarks.engine.gpu_roofline import BASES, GPU, Base, Cost, Family, StepShape, expand, shrink, table, whole_step
from tests.conftest import CHECKOUT

TINY = Base(name="tiny", hidden=64, layers=2, heads=4, kv_heads=2, dim=16, intermediate=96, vocabulary=100)


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_the_document_has_the_tables_that_the_arithmetic_makes(base: Base) -> None:
    assert table(base, StepShape()) in (CHECKOUT / "docs" / "gpu.md").read_text()


def test_costs_by_hand() -> None:
    family, load = Family("q, k", 64, (64, 32), 1), StepShape(rows=3, adapters=2, rank=20, context=7)
    # Two pages of 16, two siblings: 64 rank rows. A of two adapters, x, and h, in one slab.
    assert shrink(family, load) == Cost((2 * 64 + 3) * 64 * 2 + 3 * 64 * 4, 2 * 3 * 64 * 64)
    # B of two adapters, y there and back, h.
    assert expand(family, load) == Cost((2 * 32 + 2 * 3) * 96 * 2 + 3 * 64 * 4, 2 * 3 * 32 * 96)
    step = whole_step(TINY, load)
    assert step["attention"] == Cost(2 * 3 * 7 * 2 * 2 * 16 * 2, 2 * 4 * 3 * 7 * 4 * 16)
    num_weights = 2 * (64 * 128 + 64 * 64 + 64 * 192 + 96 * 64) + 64 * 100
    assert step["weights"].flops == 2 * 3 * num_weights


def test_the_longer_of_two_times_counts() -> None:
    card = GPU("a card", bytes_per_second=10, flops=100)
    assert Cost(20, 100).seconds(card) == 2
    assert Cost(20, 500).seconds(card) == 5


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card to measure")
def test_without_a_card_nothing_is_measured() -> None:
    command = [sys.executable, "-m", "benchmarks.engine.gpu_kernels"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("No CUDA device is here")
    assert "Traceback" not in done.stderr
