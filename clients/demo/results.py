"""How the demo's loop ended, for people and programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from graftwork.clients.http.wire import dump
from graftwork.clients.types.adapters import AdapterEvent
from graftwork.clients.types.experiments import Experiment


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Of one version, on queries that are for nothing else."""

    version: str
    right: int
    asked: int

    @property
    def share(self) -> float:
        return self.right / self.asked


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """How the loop ended, for people and programs."""

    adapter: str
    promoted: bool
    decision: str
    reason: str
    live: str
    accuracy: tuple[Accuracy, ...]
    corrections: int
    thumbs_up: int
    experiment: Experiment
    visits: int
    arms: dict[str, int]
    """Users by the version that answered them."""

    flips: int
    """Users who met two versions in the experiment. There is none."""

    history: tuple[AdapterEvent, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
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
            "experiment": dump(self.experiment),
            "users": {"visits": self.visits, "arms": self.arms, "flips": self.flips},
            "history": dump(self.history),
            "seconds": round(self.seconds, 1),
        }
