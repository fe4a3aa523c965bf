"""Files and folders that survive a power cut; and full disks as an error of their own.

A rename makes a file complete or absent; syncing first the file, then the folder it is renamed in, makes it durable.
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
"""The error code of a full disk."""


def is_disk_full(error: OSError) -> bool:
    """Whether an error means that the disk or the user's quota is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def disk_full_as_unavailable(what: str) -> Iterator[None]:
    """A context for writing ``what``, which messages name.

    Raises:
        Unavailable: The disk is full; with the code ``DISK_FULL``.
    """
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
    """Write a text file, completely or not at all; it is on disk when this returns. For one writer at a time."""
    partial = target.with_name(f".{target.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(target)


def sync_tree(folder: Path) -> None:
    """Sync a folder with everything below it, before it gets its final name."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
        elif path.is_file():
            _sync(path, 0)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Sync a folder, and so the files that were created or renamed in it.

    Raises:
        OSError: It is no folder.
    """
    _sync(folder, os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
