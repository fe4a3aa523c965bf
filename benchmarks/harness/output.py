"""Output of benchmarks: atomic files, and rows of Markdown tables."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write a file atomically, since a benchmark may be stopped at any time."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def markdown_row(cells: Sequence[object]) -> str:
    """Format cells as a row of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"
