"""Folders of published adapters, as the artifact store lays them out."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from graftwork.adapters.base import BaseInfo, ModuleShape
from tests.server.fakes import MODULES, adapter_files

BASE = BaseInfo(
    id="tiny-base",
    path="/nowhere",
    digest="sha256:" + "b" * 64,
    architecture="LlamaForCausalLM",
    dtype="float32",
    num_parameters=128,
    vocab_size=256,
    max_positions=64,
    num_layers=1,
    hidden_size=8,
    eos_token_ids=(0,),
    modules={name: ModuleShape(kind="linear", shape=(8, 8), bias=False) for name in MODULES},
    tied=(),
)


def publish(root: Path, seed: int, *, rank: int = 2, b: float | None = None) -> str:
    """Publish an adapter, perhaps with the same number everywhere in B, and return its digest."""
    files = adapter_files(seed, rank=rank)
    if b is not None:
        name = f"base_model.model.{MODULES[0]}"
        a, filled = np.ones((rank, 8), np.float32), np.full((8, rank), b, np.float32)
        files["adapter_model.safetensors"] = save({f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": filled})
    digest = hashlib.sha256(b"".join(files.values())).hexdigest()
    (root / digest).mkdir(parents=True)
    for filename, content in files.items():
        (root / digest / filename).write_bytes(content)
    return f"sha256:{digest}"
