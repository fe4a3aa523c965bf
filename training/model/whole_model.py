"""Saving of a fully fine-tuned model, as a Hugging Face folder that `graftwork serve --base` accepts.

It is not an adapter: it takes the memory of a base, and cannot be swapped while serving.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import PreTrainedModel

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.base.folder import SIDE_FILES


def save_whole_model(model: PreTrainedModel, base: BaseInfo, folder: Path) -> None:
    """Save a fine-tuned model in the dtype of its base, with the base's tokenizer, chat template and configuration.

    Args:
        model: the model; it is converted in place and must not be used afterwards.
        base: the base that it was trained from.
        folder: the folder to write to.
    """
    model.to(getattr(torch, base.dtype)).save_pretrained(folder)
    # The base's configuration replaces the model's, in which trainers have set placeholder token ids.
    for name in SIDE_FILES:
        if Path(base.path, name).is_file():
            shutil.copyfile(Path(base.path, name), folder / name)
