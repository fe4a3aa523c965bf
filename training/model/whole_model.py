"""A base that was trained as a whole, as a folder that `graftwork serve --base` and everybody else reads.

It is no adapter: its weights are its own, so that it takes a base's memory and cannot be swapped while serving.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import PreTrainedModel

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.base.folder import SIDE_FILES


def save_whole_model(model: PreTrainedModel, base: BaseInfo, folder: Path) -> None:
    """Write the weights, in the base's own precision, and what goes with them as it stands in the base's folder: the
    model speaks as its base did. ``model`` is not to be used afterwards."""
    model.to(getattr(torch, base.dtype)).save_pretrained(folder)
    # Its configuration too: trainers leave ids in it that were made up for them.
    for name in SIDE_FILES:
        if Path(base.path, name).is_file():
            shutil.copyfile(Path(base.path, name), folder / name)
