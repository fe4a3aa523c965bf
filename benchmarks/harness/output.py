"""What a benchmark writes: a file at once, a row of a Markdown table."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """All of it or nothing: a benchmark may be stopped at any moment."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def markdown_row(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"
