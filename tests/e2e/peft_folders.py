"""PEFT folders on the real embedded base: some that answer differently, many that cost next to nothing to make.

All numbers are random: nothing here was trained, and nothing needs to be for a server to be told apart by its answers.
Folders are kept between runs under a name that says what is in them.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from graftwork.adapters.base import BaseInfo

NAMES = ("billing", "cards", "delivery", "greetings", "intents", "refunds", "returns", "summaries")
"""The eight adapters of the tests, each of rank 16 on all linear modules."""

#: Enough for another answer to every prompt, too little for gibberish of one letter.
STRENGTH = 0.04


def make_full(base: BaseInfo, store: Path, versions: dict[str, int]) -> dict[str, Path]:
    """Rank 16 on all linear modules: one folder for every ``name@number`` up to the number of versions of the name."""
    ids = [f"{name}@{number}" for name, count in versions.items() for number in range(1, count + 1)]
    wanted = {version: store / f"full-{STRENGTH}-{version}" for version in ids}
    missing = {version: folder for version, folder in wanted.items() if not folder.is_dir()}
    if missing:
        _write_full(base, missing)
    return wanted


def _write_full(base: BaseInfo, folders: dict[str, Path]) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    from tests.engine import zoo

    config = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
    model = get_peft_model(zoo.load_reference(base), config)
    for version, folder in folders.items():
        torch.manual_seed(zlib.crc32(version.encode()))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.normal_(0, STRENGTH)
        with _arriving(folder) as made:
            model.save_pretrained(made)


class SmallAdapters:
    """Rank 2 on q_proj and v_proj: half a megabyte, and as many different ones as one asks for."""

    def __init__(self, base: BaseInfo, store: Path) -> None:
        self._template = store / "small-template"
        if not self._template.is_dir():
            from tests.engine import zoo

            kind = {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
            with _arriving(self._template) as made:
                zoo.make_adapter(base, made, kind, seed=1, strength=0.06)
        self._tensors = load_file(self._template / "adapter_model.safetensors")

    def write(self, folder: Path, seed: int, **config: object) -> Path:
        """An adapter of the numbers that ``seed`` gives; ``config`` changes fields of its adapter_config.json."""
        folder.mkdir(parents=True)
        random = np.random.default_rng(seed)
        tensors = {
            key: random.normal(0, 0.06, tensor.shape).astype(tensor.dtype) for key, tensor in self._tensors.items()
        }
        save_file(tensors, folder / "adapter_model.safetensors")
        plain = json.loads((self._template / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**plain, **config}))
        return folder


@contextmanager
def _arriving(folder: Path) -> Iterator[Path]:
    """A folder to write, which appears under its name when all of it is there, unless another process was quicker."""
    made = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    made.mkdir(parents=True)
    try:
        yield made
        try:
            os.rename(made, folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
