"""The files of an adapter's folder: which names are allowed, and opening one without following links."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import BinaryIO

from graftwork.adapters.errors import InvalidAdapter
from graftwork.adapters.names import escaped

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

MODEL_CARD_FILE = "README.md"  # PEFT writes a model card beside every adapter

TOKENIZER_FILES = ("chat_template.jinja", "tokenizer_config.json", "tokenizer.json", "added_tokens.json")
"""What trainers save beside an adapter: compared with the base's, and dropped."""

_PICKLE = re.compile(r"\.(bin|pt|pth|pkl|pickle|ckpt)\Z", re.IGNORECASE)
# What a Trainer leaves beside an adapter. These are pickles too, but no part of the adapter: they are never opened.
_TRAINER_STATE = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state(_\d+)?)\.(bin|pt|pth)\Z")


def check_filename(filename: str) -> None:
    """Check the name of a pushed file. A model card and a tokenizer's files are allowed, and dropped.

    Raises:
        InvalidAdapter: It is no file of an adapter.
    """
    if filename in (CONFIG_FILE, WEIGHTS_FILE, MODEL_CARD_FILE, *TOKENIZER_FILES):
        return
    if _PICKLE.search(filename):
        raise InvalidAdapter(
            f"{escaped(filename)} is a pickle, which can run code when it is opened: save the adapter with "
            f"model.save_pretrained(folder, safe_serialization=True) and push {WEIGHTS_FILE} instead.",
            param="files",
        )
    raise InvalidAdapter(
        f"{escaped(filename)} is no part of an adapter: push {CONFIG_FILE} and {WEIGHTS_FILE}, under these plain "
        "names.",
        param="files",
    )


def open_regular(path: str | Path, *, dir_fd: int | None = None, what: str | None = None) -> BinaryIO:
    """Open a regular file for reading.

    Args:
        path: The file.
        dir_fd: A folder that ``path`` is relative to.
        what: Its name in messages.

    Raises:
        InvalidAdapter: It is missing or unreadable, or is something else: a link, FIFO, device or folder.
    """
    name = what or os.path.basename(path)
    try:
        mode = os.stat(path, dir_fd=dir_fd, follow_symlinks=False).st_mode
        if not stat.S_ISREG(mode):
            raise InvalidAdapter(f"{escaped(name)} is {_kind(mode)}, not a file: push the file itself.", param=name)
        # The check keeps devices closed; the flags hold if the name was swapped for something else since.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd)
    except FileNotFoundError:
        raise InvalidAdapter(f"{escaped(name)} is missing: push the whole adapter folder.", param=name) from None
    except (OSError, ValueError) as error:
        raise InvalidAdapter(f"{escaped(name)} cannot be read: {os_error_reason(error)}.", param=name) from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise InvalidAdapter(f"{escaped(name)} changed while it was read: push again.", param=name)
    return os.fdopen(fd, "rb")


def check_listing(names: set[str], source: Path) -> None:
    """Check the names of a folder's files.

    Raises:
        InvalidAdapter: It has pickles, or lacks one of the two files.
    """
    for name in sorted(names):
        if _PICKLE.search(name) and not _TRAINER_STATE.match(name):
            check_filename(name)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if name not in names:
            raise InvalidAdapter(
                f"{name} is missing in {escaped(str(source))}: an adapter is a folder written by "
                "model.save_pretrained(folder, safe_serialization=True).",
                param=name,
            )


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFLNK: "a link",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")


def os_error_reason(error: Exception) -> str:
    """An error's reason, without path and number."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
