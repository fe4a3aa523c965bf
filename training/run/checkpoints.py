"""Checkpoints of a run: ``step-N/``, each whole or not there, and which of them to go on from.

transformers writes one into a folder aside; `publish` makes it last and gives it its name.
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
"""How large every other file of a checkpoint is."""

MAX_CHECKPOINTS: Final = 2
"""Newest checkpoints that stay; older ones make room."""


def step_of(folder: Path) -> int | None:
    """After which step; None if it is no checkpoint's name."""
    head, _, tail = folder.name.rpartition("-")
    return int(tail) if head == "step" and tail.isdecimal() else None


def published(folder: Path) -> list[Path]:
    """All checkpoints of a run, the newest first."""
    if not folder.is_dir():
        return []
    found = [(step, path) for path in folder.iterdir() if (step := step_of(path)) is not None]
    return [path for _, path in sorted(found, reverse=True)]


def newest(folder: Path) -> Path | None:
    """The newest one that can be gone on from. One that somebody damaged is passed over."""
    return next((path for path in published(folder) if _is_whole(path)), None)


def publish(written: Path, folder: Path, step: int) -> Path:
    """Make what was written the run's checkpoint after ``step``: on disk first, then under its name, in one rename.
    All but the newest go."""
    final = folder / f"step-{step}"
    (written / FILE_SIZES).write_text(json.dumps(_sizes(written)), encoding="utf-8")
    sync_tree(written)
    shutil.rmtree(final, ignore_errors=True)
    written.rename(final)
    sync_folder(folder)
    for old in published(folder)[MAX_CHECKPOINTS:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _is_whole(path: Path) -> bool:
    try:
        return bool(json.loads((path / FILE_SIZES).read_bytes()) == _sizes(path))
    except (OSError, ValueError):
        return False


def _sizes(folder: Path) -> dict[str, int]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != FILE_SIZES)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


class RunStopped(Exception):
    """Somebody asked the run to end; its newest checkpoint is whole."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpointing:
    """Where checkpoints are kept, who hears of them, and who may end the run in between."""

    folder: Path
    on_checkpoint: Callable[[int], None] = lambda step: None
    should_stop: Callable[[], bool] = lambda: False
