"""Prepares a base: turns the embedded default, a hub id or a folder into a plain folder and its info."""

from __future__ import annotations

from pathlib import Path

from graftwork.adapters.base.embedded import EMBEDDED_ID, embedded_folder
from graftwork.adapters.base.folder import weight_files, with_tokenizer
from graftwork.adapters.base.hub import from_hub
from graftwork.adapters.base.identity import read_base_info
from graftwork.adapters.base.info import BaseInfo
from graftwork.adapters.base.progress import Progress


def prepare(base: str | None, home: Path, progress: Progress) -> BaseInfo:
    """Make a base ready and describe it.

    Idempotent, and safe against crashes and other processes that do the same: what was interrupted is done again, what
    is complete is never done twice.

    Args:
        base: A folder or a hub id; ``None``: the embedded base.
        home: The server's home; bases are stored in ``base`` below it.
        progress: Reports what takes long.

    Raises:
        ConfigurationError: The base cannot be fetched or cannot be served; the message says why and what to do.
    """
    store = home.expanduser().resolve() / "base"
    store.mkdir(parents=True, exist_ok=True)
    if base is None:
        served_id, folder = EMBEDDED_ID, embedded_folder(store, progress)
    elif base and Path(base).expanduser().is_dir():
        folder = Path(base).expanduser().resolve()
        served_id = folder.name
    else:
        served_id, folder = base, from_hub(base, store, progress)
    weights = weight_files(folder)
    if not (folder / "tokenizer.json").is_file():
        folder = with_tokenizer(folder, weights, store, progress)
        weights = weight_files(folder)
    return read_base_info(served_id, folder, weights, store / "info", progress)
