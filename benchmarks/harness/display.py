"""The progress of a benchmark on standard error: a spinner on a terminal, otherwise lines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.status import Status


class Display:
    """Shows the progress of a benchmark on a console; standard error by default."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._status: Status | None = None
        self._titles: list[str] = []

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def working(self, title: str) -> Iterator[None]:
        """Show a title while the block runs, and its duration afterwards. Blocks can be nested."""
        began = time.monotonic()
        self._titles.append(title)
        self._show()
        try:
            yield
        finally:
            self._titles.pop()
            self._show()
        if (seconds := time.monotonic() - began) >= 1:
            self.say(f"{title}: {seconds:.0f} s")

    def _show(self) -> None:
        """Show the innermost title, as a terminal can have one spinner at a time."""
        if not self._console.is_terminal:
            return
        if self._status is None and self._titles:
            self._status = self._console.status(self._titles[-1])
            self._status.start()
        elif self._status is not None and self._titles:
            self._status.update(self._titles[-1])
        elif self._status is not None:
            self._status.stop()
            self._status = None
