"""Computes a base's ``BaseInfo`` from its files and from a model without weights."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from graftwork.adapters.base.atomic_files import write_atomically
from graftwork.adapters.base.folder import fingerprint
from graftwork.adapters.base.info import BaseInfo, ModuleShape
from graftwork.adapters.base.loading import skeleton
from graftwork.adapters.base.progress import Progress
from graftwork.adapters.base.tensors import TensorLocation, dtype_on_disk, tensors_of
from graftwork.adapters.errors import ConfigurationError
from graftwork.adapters.prompts.prompts import Prompts
from graftwork.adapters.prompts.reading import read_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def read_base_info(served_id: str, folder: Path, weights: Sequence[Path], cache: Path, progress: Progress) -> BaseInfo:
    """The info of a base, cached until one of its files changes.

    Hashing a large base takes a minute, building its skeleton seconds.

    Args:
        served_id: The id it is served under.
        folder: With config.json and tokenizer.json.
        weights: Its safetensors files.
        cache: Folder of cached infos.
        progress: Reports both.

    Raises:
        ConfigurationError: The base cannot be loaded, or its tokenizer has more tokens than the model.
    """
    known = cache / f"{fingerprint(folder)}.json"
    if known.is_file():
        return dataclasses.replace(BaseInfo.from_json(known.read_text(encoding="utf-8")), id=served_id)
    info = _inspected(served_id, folder, weights, progress)
    cache.mkdir(exist_ok=True)
    write_atomically(known, info.to_json())
    return info


def _inspected(served_id: str, folder: Path, weights: Sequence[Path], progress: Progress) -> BaseInfo:
    progress(f"Reading the architecture of {served_id}", None)
    prompts = Prompts(folder)
    model, config = skeleton(folder)
    modules, tied = _modules(model)
    tensors = tensors_of(weights)
    embedding: torch.nn.Embedding = model.get_input_embeddings()
    if prompts.vocab_size > embedding.weight.shape[0]:
        raise ConfigurationError(
            f"{folder}: the tokenizer knows {prompts.vocab_size} tokens, the model only {embedding.weight.shape[0]}. "
            "Fetch the base again."
        )
    return BaseInfo(
        id=served_id,
        path=str(folder),
        digest=_digest(tensors, {f"{borrower}.weight" for borrower, _ in tied}, folder, prompts, progress),
        architecture=type(model).__name__,
        dtype=dtype_on_disk(tensors),
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        vocab_size=embedding.weight.shape[0],
        max_positions=config.max_position_embeddings,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        eos_token_ids=tuple(sorted(prompts.eos_token_ids)),
        modules=modules,
        tied=tied,
    )


def _modules(model: PreTrainedModel) -> tuple[dict[str, ModuleShape], tuple[tuple[str, str], ...]]:
    """The modules that own parameters, and pairs of those that share a weight."""
    import torch

    modules: dict[str, ModuleShape] = {}
    tied: list[tuple[str, str]] = []
    owners: dict[int, str] = {}
    for name, module in model.named_modules():
        parameters = dict(module.named_parameters(recurse=False))
        if not parameters:
            continue
        weight = parameters.get("weight", next(iter(parameters.values())))
        linear, embedding = isinstance(module, torch.nn.Linear), isinstance(module, torch.nn.Embedding)
        modules[name] = ModuleShape(
            kind="linear" if linear else "embedding" if embedding else "other",
            shape=tuple(weight.shape),
            bias="bias" in parameters,
        )
        owner = owners.setdefault(id(weight), name)
        if owner != name:
            tied.append((name, owner))
    return modules, tuple(tied)


def _digest(
    tensors: Sequence[TensorLocation], tied: set[str], folder: Path, prompts: Prompts, progress: Progress
) -> str:
    """The digest of a base: over each tensor's name, type, shape and bytes, however the files are split.

    Tied tensors count once. The tokenizer and the chat template are part of it.
    """
    title = f"Hashing {folder.name}"
    counted = [tensor for tensor in tensors if tensor.name not in tied]
    total, done = sum(tensor.end - tensor.start for tensor in counted), 0
    digest = hashlib.sha256(b"graftwork base 1\n")
    for tensor in counted:
        digest.update(json.dumps([tensor.name, tensor.dtype, tensor.shape]).encode())
        with tensor.file.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            for begin in range(tensor.start, tensor.end, 1 << 24):
                end = min(begin + (1 << 24), tensor.end)
                with memoryview(mapped)[begin:end] as view:
                    digest.update(view)
                done += end - begin
                progress(title, done / total)
    tokenizer = read_json(folder / "tokenizer.json")
    # Settings of the tokenizer's last use, not part of it.
    tokenizer.pop("truncation", None)
    tokenizer.pop("padding", None)
    digest.update(json.dumps([tokenizer, prompts.chat_template], sort_keys=True).encode())
    return f"sha256:{digest.hexdigest()}"
