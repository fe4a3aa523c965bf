"""A base's folder: its weight files, its tokenizer in the format that is read here, and a fingerprint of its files."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path

from graftwork.adapters.base.atomic_files import lock, partial_of, publish
from graftwork.adapters.base.loading import transformers_reads
from graftwork.adapters.base.progress import Progress
from graftwork.adapters.errors import ConfigurationError
from graftwork.adapters.prompts.reading import read_json

_INFO_FORMAT = 1
"""Raised when BaseInfo, or what its digest covers, changes: infos cached by an older Graftwork are then not used."""

SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)
"""Files that are fetched from a hub repository beside its safetensors: no pickles, no code."""


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the model, found as transformers finds them.

    Raises:
        ConfigurationError: The folder is no saved model, is incomplete, or has its weights as a pickle.
    """
    if not (folder / "config.json").is_file():
        raise ConfigurationError(
            f"{folder} has no config.json, so it is no model that transformers saved. Give one that is."
        )
    index = folder / "model.safetensors.index.json"
    names = sorted(set(read_json(index).get("weight_map", {}).values())) or ["model.safetensors"]
    missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if not missing:
        return [folder / name for name in names]
    if index.is_file():
        raise ConfigurationError(
            f"{folder} is incomplete: {index.name} names {missing[0]}, which is not there. Copy it too."
        )
    pickles = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in sorted(folder.glob(pattern))]
    if pickles:
        raise ConfigurationError(
            f"{folder} holds its weights as a pickle ({pickles[0]}), which can run code when it is read and is never "
            "loaded. Save it as safetensors: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
        )
    raise ConfigurationError(
        f"{folder} has no model.safetensors. Give a folder that transformers' save_pretrained wrote."
    )


def with_tokenizer(folder: Path, weights: Sequence[Path], store: Path, progress: Progress) -> Path:
    """A folder in ``store`` that links to the files of ``folder`` and has the ``tokenizer.json`` which that lacks.

    Older models have only ``vocab.json`` or ``tokenizer.model``, which transformers converts once.

    Raises:
        ConfigurationError: transformers cannot convert the tokenizer.
    """
    made = store / "tokenized" / f"{folder.name}-{fingerprint(folder)[:16]}"
    if made.is_dir():
        return made
    made.parent.mkdir(parents=True, exist_ok=True)
    progress(f"Converting the tokenizer of {folder.name}", None)
    with lock(made.parent / ".lock", progress), partial_of(made) as partial:
        if partial is not None:
            with transformers_reads(folder):
                from transformers import AutoTokenizer

                tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
                tokenizer.save_pretrained(partial / "made")
            if not (partial / "made" / "tokenizer.json").is_file():
                raise ConfigurationError(
                    f"{folder} has no tokenizer.json, and transformers cannot make one of its "
                    f"{type(tokenizer).__name__}. Choose another base."
                )
            sides = [folder / name for name in (*SIDE_FILES, "model.safetensors.index.json")]
            for source in (*weights, *(side for side in sides if side.is_file())):
                if not (partial / "made" / source.name).exists():
                    (partial / "made" / source.name).symlink_to(source.resolve())
            publish(partial / "made", made)
    return made


def fingerprint(folder: Path) -> str:
    """A hash that changes when a file of the base does (by size or time), or the libraries that read it."""
    stats = {path.name: path.stat() for path in sorted(folder.iterdir()) if path.is_file()}
    seen = [_INFO_FORMAT, importlib.metadata.version("transformers"), str(folder)]
    seen += [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()
