"""Reads the JSON and text files of a base's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from graftwork.adapters.errors import ConfigurationError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a base's folder; empty if there is no such file.

    Raises:
        ConfigurationError: It cannot be read, or is no JSON object.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        raise ConfigurationError(f"{path} is not valid JSON ({error}). Fetch the base again.") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path} must hold a JSON object. Fetch the base again.")
    return content


def read_text(path: Path) -> str:
    """The content of a UTF-8 file.

    Raises:
        ConfigurationError: It cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}. Fetch the base again.") from error
