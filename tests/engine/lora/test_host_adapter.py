"""Reading a checked adapter file as safetensors reads it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from graftwork.server.engine.lora.host_adapter import _tensors


@pytest.mark.parametrize("padding", range(4))
def test_every_dtype_wherever_it_lies(padding: int, tmp_path: Path) -> None:
    """A file may have a header of any length, and then numbers lie at odd places."""
    path = tmp_path / "adapter_model.safetensors"
    made = {"a": torch.randn(3, 5).half(), "b": torch.randn(7).bfloat16(), "c": torch.randn(2, 3)}
    save_file(made, path, metadata={"format": "pt"})
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = content[8:start].rstrip() + b" " * padding
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[start:])
    tensors = _tensors(path)
    with safe_open(path, framework="pt") as expected:
        assert set(tensors) == set(expected.keys()) == set(made)
        for key, tensor in tensors.items():
            assert tensor.dtype == made[key].dtype
            assert torch.equal(tensor, expected.get_tensor(key))
