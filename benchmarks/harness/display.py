"""How far a benchmark is, on standard error: a spinner on a terminal, else lines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.status import Status


class Display:
    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._status: Status | None = None
        self._titles: list[str] = []

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def working(self, title: str) -> Iterator[None]:
        """Around something that takes a while; one inside another is fine."""
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
        """A terminal has one spinner at a time: it tells of the innermost work."""
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
