"""Stored data sets: their folders ``HOME/datasets/NAME/N/``, and their references ``support@3``."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from graftwork.adapters import names
from graftwork.adapters.errors import NotFound

FOLDER: Final = "datasets"
"""Below the home."""


def is_reference(text: str) -> bool:
    """Whether ``text`` has the form of a reference, whether or not that data set exists."""
    name, at, number = text.partition("@")
    return bool(at) and names.is_name(name) and number.isascii() and number.isdecimal()


def find(home: Path, reference: str) -> Path:
    """The folder of a reference.

    Raises:
        NotFound: It does not exist.
    """
    name, _, number = reference.partition("@")
    folder = home / FOLDER / name / number
    if not is_reference(reference) or not folder.is_dir():
        raise NotFound(
            f"There is no data set {names.quoted(reference)} in this server's home. Make one there with graftwork data "
            "check FILE --save NAME.",
            code="data_set_not_found",
        )
    return folder
