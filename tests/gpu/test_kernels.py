"""The Triton kernels compiled and run on a GPU, with the cases of the interpreter."""

from __future__ import annotations

import pytest
import torch

from tests.engine.triton_cases import *  # noqa: F403
from tests.gpu import needs_card

pytestmark = [pytest.mark.gpu, needs_card]


@needs_card
def test_the_cases_run_on_the_card() -> None:
    from tests.engine.triton_cases import DEVICE

    assert torch.device("cuda") == DEVICE
