"""What is told to whoever observes the demo's loop."""

from __future__ import annotations

from typing import Protocol

from graftwork.clients.demo.users import UserAnswer
from graftwork.clients.types.experiments import Experiment


class LoopObserver(Protocol):
    """Is told what happens, in the thread that runs the loop."""

    def begin(self, what: str) -> None:
        """A step begins."""

    def progress(self, done: int, total: int | None, note: str) -> None:
        """So much of it is done."""

    def end(self, result: str) -> None:
        """The step is over, with this result."""

    def told(self, told: UserAnswer) -> None:
        """A user got an answer."""

    def experiment(self, experiment: Experiment) -> None:
        """How the experiment stands now."""
