"""An adapter in host memory: read as safetensors reads it, and kept off the fast path if it is more than B·A."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from graftwork.server.engine.lora.host_adapter import PLAIN_FIELDS, HostAdapter, LinearGraft, _tensors
from tests.engine import zoo

PLAIN_LAYER = LinearGraft(a=torch.ones(1, 16, 4), b=torch.ones(1, 16, 4), magnitude=None, bias=None)
PLAIN = HostAdapter(
    digest="sha256:0", num_pages=1, num_bytes=512, linears={"q_proj": PLAIN_LAYER}, embeddings={}, replaced={}
)


def test_plain_layers_are_for_the_fast_path() -> None:
    assert not PLAIN.is_special


@pytest.mark.parametrize("name", sorted({field.name for field in fields(LinearGraft)} - PLAIN_FIELDS))
def test_whatever_else_a_layer_has_is_special(name: str) -> None:
    more: dict[str, Any] = {name: torch.zeros(4)}
    assert replace(PLAIN, linears={"k_proj": PLAIN_LAYER, "q_proj": replace(PLAIN_LAYER, **more)}).is_special


@pytest.mark.parametrize("name", sorted({field.name for field in fields(HostAdapter)} - PLAIN_FIELDS))
def test_whatever_else_an_adapter_has_is_special(name: str) -> None:
    more: dict[str, Any] = {name: {"embed_tokens": torch.zeros(4)}}
    assert replace(PLAIN, **more).is_special


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


def test_files_that_changed_on_the_disk_are_not_served(tmp_path: Path) -> None:
    base = zoo.make_base("llama", tmp_path / "base", tmp_path / "home")
    zoo.make_adapter(base, tmp_path / "a", zoo.KINDS["rank-16"], seed=1)
    zoo.make_adapter(base, tmp_path / "b", zoo.KINDS["rank-16"], seed=2)
    bench = zoo.Bench(base, {"a": tmp_path / "a", "b": tmp_path / "b"})
    weights = tmp_path / "a" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    bench.add("damaged", [1, 2, 3], "a")
    bench.add("intact", [1, 2, 3], "b")
    answers = bench.run()
    assert "changed on the disk" in answers["damaged"].error
    assert (answers["intact"].error, len(answers["intact"].tokens)) == (None, 8)
    content[-1] ^= 1
    weights.write_bytes(content)
    bench.add("repaired", [1, 2, 3], "a")
    assert len(bench.run()["repaired"].tokens) == 8
