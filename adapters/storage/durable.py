"""Files and folders that are still there after a power cut; and a full disk, distinguished from other errors.

A rename makes a thing whole or not there; what is synced first, and the folder it is renamed in, makes it last.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from graftwork.adapters.errors import Unavailable

DISK_FULL: Final = "disk_full"
"""The code of the error that a full disk becomes."""


def is_disk_full(error: OSError) -> bool:
    """Whether it is the disk that is full, or somebody's share of it."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def disk_full_as_unavailable(what: str) -> Iterator[None]:
    """Turn a full disk into Unavailable with the code `DISK_FULL`; ``what`` is being written, as the message says."""
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise Unavailable(
            f"the server's disk is full, and nothing of this {what} was kept: make room and send it again",
            code=DISK_FULL,
        ) from error


def write_durably(target: Path, text: str) -> None:
    """Leave ``text`` there, whole or not at all, on disk when this returns. For one writer at a time."""
    partial = target.with_name(f".{target.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(target)


def sync_tree(folder: Path) -> None:
    """All files below a folder, and the folders, so that it can be given its final name."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
        elif path.is_file():
            _sync(path, 0)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """What was created or renamed in it. What is no folder is an error."""
    _sync(folder, os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
