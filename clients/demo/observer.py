"""The protocol of observers of the demo's loop."""

from __future__ import annotations

from typing import Protocol

from graftwork.clients.demo.users import UserAnswer
from graftwork.clients.types.experiments import Experiment


class LoopObserver(Protocol):
    """Receives the events of the loop, in the thread that runs it."""

    def begin(self, what: str) -> None:
        """Called when a step begins."""

    def progress(self, done: int, total: int | None, note: str) -> None:
        """Called when the step has made progress; ``total`` is None if it is unknown."""

    def end(self, result: str) -> None:
        """Called when the step has ended, with its result."""

    def told(self, told: UserAnswer) -> None:
        """Called when a user has got an answer."""

    def experiment(self, experiment: Experiment) -> None:
        """Called with the state of the experiment."""
