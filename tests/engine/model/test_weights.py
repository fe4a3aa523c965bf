"""NF4 by bitsandbytes: one fused operator a layer, whatever the number of rows, and nothing that waits for the device.

On a CPU the same Python runs as on a card, up to the operator that torch chooses by the device.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from graftwork.server.engine.model.weights import NF4Weights


class Watch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.calls.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("num_rows", [1, 5, 70])
@pytest.mark.parametrize("num_inputs", [128, 96])  # the second is no multiple of a block of 64
def test_a_layer_is_one_operator(num_rows: int, num_inputs: int) -> None:
    torch.manual_seed(num_rows)
    weights = NF4Weights([torch.randn(width, num_inputs) for width in (64, 128, 32)], torch.bfloat16)
    x = torch.randn(num_rows, num_inputs, dtype=torch.bfloat16)
    with torch.inference_mode(), Watch() as watch:
        y = weights.matmul(x)
    ours = [call for call in watch.calls if call.startswith("bitsandbytes")]
    assert ours.count("bitsandbytes::gemm_4bit") == 3
    assert not [call for call in watch.calls if "_local_scalar_dense" in call or "nonzero" in call]
    expected = x.float() @ weights.dense().T
    assert y.shape == (num_rows, 224)
    assert (y.float() - expected).abs().max() < 0.02 * expected.abs().max()
