"""Folders and files that are written completely or not at all.

Safe against crashes and against other processes that write the same.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from graftwork.adapters.base.progress import Progress
from graftwork.adapters.storage.durable import sync_folder, sync_tree


@contextmanager
def lock(path: Path, progress: Progress) -> Iterator[None]:
    """Hold a lock across processes; the kernel releases it when a process dies. ``progress`` reports waiting for it."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("Waiting for another process that is preparing the same base", None)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def partial_of(folder: Path) -> Iterator[Path | None]:
    """A temporary folder in which to make ``folder``, under its lock; ``None`` if another process has just made it."""
    if folder.is_dir():
        yield None
        return
    for leftover in folder.parent.glob(f".{folder.name}.partial-*"):
        shutil.rmtree(leftover)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def publish(made: Path, folder: Path) -> None:
    """Give a finished folder its final name, after all of it is on disk."""
    sync_tree(made)
    made.rename(folder)
    sync_folder(folder.parent)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file and rename it to ``path``: readers see the old or the new content."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
        file.write(text)
    os.replace(file.name, path)
