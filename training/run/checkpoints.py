"""Checkpoints of a run: ``step-N/``, each published atomically, and the one to resume from.

transformers writes a checkpoint into another folder; `publish` makes it durable and renames it.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from graftwork.adapters.storage.durable import sync_folder, sync_tree

FILE_SIZES: Final = "files.json"
"""File in a checkpoint with the sizes of all its other files, in bytes."""

MAX_CHECKPOINTS: Final = 2
"""Number of checkpoints that are kept; older ones are deleted."""


def step_of(folder: Path) -> int | None:
    """Return the step of a checkpoint, from the name of its folder; None if it is not one."""
    head, _, tail = folder.name.rpartition("-")
    return int(tail) if head == "step" and tail.isdecimal() else None


def published(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, the newest first."""
    if not folder.is_dir():
        return []
    found = [(step, path) for path in folder.iterdir() if (step := step_of(path)) is not None]
    return [path for _, path in sorted(found, reverse=True)]


def newest(folder: Path) -> Path | None:
    """Return the newest checkpoint that is intact, to resume from; None if there is none."""
    return next((path for path in published(folder) if _is_intact(path)), None)


def publish(written: Path, folder: Path, step: int) -> Path:
    """Publish a checkpoint durably and atomically, and delete old ones.

    Args:
        written: the folder that transformers has written; on the same file system.
        folder: the folder of the run's checkpoints.
        step: the number of steps that are done.

    Returns:
        The folder of the checkpoint.
    """
    final = folder / f"step-{step}"
    (written / FILE_SIZES).write_text(json.dumps(_sizes(written)), encoding="utf-8")
    sync_tree(written)
    shutil.rmtree(final, ignore_errors=True)
    written.rename(final)
    sync_folder(folder)
    for old in published(folder)[MAX_CHECKPOINTS:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _is_intact(path: Path) -> bool:
    try:
        return bool(json.loads((path / FILE_SIZES).read_bytes()) == _sizes(path))
    except (OSError, ValueError):
        return False


def _sizes(folder: Path) -> dict[str, int]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != FILE_SIZES)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


class RunStopped(Exception):
    """Raised when a run was asked to stop and did, after it saved a checkpoint."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpointing:
    """How a run saves checkpoints.

    Attributes:
        folder: the folder of the checkpoints.
        on_checkpoint: called with the number of steps after each checkpoint.
        should_stop: asked after each step; the run saves and stops if it returns True.
    """

    folder: Path
    on_checkpoint: Callable[[int], None] = lambda step: None
    should_stop: Callable[[], bool] = lambda: False
