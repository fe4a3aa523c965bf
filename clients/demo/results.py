"""The result of the demo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from graftwork.clients.http.wire import dump
from graftwork.clients.types.adapters import AdapterEvent
from graftwork.clients.types.experiments import Experiment
from graftwork.clients.types.learning.rounds import Round


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """The accuracy of a version on held-out queries."""

    version: str
    right: int
    asked: int

    @property
    def share(self) -> float:
        """Share of right answers, 0 to 1."""
        return self.right / self.asked


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """The result of the demo."""

    adapter: str
    promoted: bool
    decision: str
    """The state in which the round ended: promoted, set_aside, …"""

    reason: str
    live: str
    accuracy: tuple[Accuracy, ...]
    corrections: int
    thumbs_up: int
    round: Round
    experiment: Experiment | None
    """The experiment; None if the gates refused the second version."""

    visits: int
    arms: dict[str, int]
    """Number of users by the version that answered them."""

    flips: int
    """Number of users who got answers of two versions in the experiment; 0 is expected."""

    history: tuple[AdapterEvent, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the result in JSON's types."""
        measured = {
            each.version: {"right": each.right, "asked": each.asked, "accuracy": each.share} for each in self.accuracy
        }
        return {
            "adapter": self.adapter,
            "promoted": self.promoted,
            "decision": self.decision,
            "reason": self.reason,
            "live": self.live,
            "accuracy": measured,
            "corrections": self.corrections,
            "thumbs_up": self.thumbs_up,
            "round": dump(self.round),
            "experiment": None if self.experiment is None else dump(self.experiment),
            "users": {"visits": self.visits, "arms": self.arms, "flips": self.flips},
            "history": dump(self.history),
            "seconds": round(self.seconds, 1),
        }
