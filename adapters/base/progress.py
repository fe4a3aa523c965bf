"""Progress of preparing a base."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Progress = Callable[[str, float | None], None]
"""Called with what is being done and the fraction that is done (0 to 1), or ``None`` when that is unknown."""


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A progress bar on stderr if that is a terminal, else one line for each step."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        last = ""

        def line(title: str, fraction: float | None) -> None:
            nonlocal last
            if title != last:
                print(f"{title} …", file=sys.stderr, flush=True)
            last = title

        yield line
        return
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console) as bar:
        tasks: dict[str, Any] = {}

        def show(title: str, fraction: float | None) -> None:
            if title not in tasks:
                for done in tasks.values():
                    bar.update(done, total=1.0, completed=1.0)
                tasks[title] = bar.add_task(title, total=None if fraction is None else 1.0)
            if fraction is not None:
                bar.update(tasks[title], completed=fraction)

        yield show
        for done in tasks.values():
            bar.update(done, total=1.0, completed=1.0)
