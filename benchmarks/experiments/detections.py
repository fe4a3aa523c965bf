"""How many of many simulated experiments declared a winner, and when."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ALPHA = 0.05


Floats = NDArray[np.float64]


Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Detections:
    """The detections of many runs.

    Attributes:
        after: number of units until a winner was declared, 0 for none, [runs].
        winner: 1 for the treatment, -1 for the control, 0 for none, [runs].
    """

    after: Ints
    winner: Ints

    @property
    def declared(self) -> float:
        """Share of runs in which a winner was declared."""
        return float((self.after > 0).mean())

    def share_of(self, winner: int) -> float:
        """Return the share of runs with this winner."""
        return float((self.winner == winner).mean())

    @property
    def median(self) -> float:
        """Median number of units until a winner is declared; infinite if most runs declared none."""
        return float(np.median(np.where(self.after > 0, self.after, math.inf)))


class FirstDetection:
    """Records when each run first declared a winner."""

    def __init__(self, num_runs: int) -> None:
        self._after = np.zeros(num_runs, dtype=np.int64)
        self._winner = np.zeros(num_runs, dtype=np.int64)

    def update(self, num: int, treatment_wins: NDArray[np.bool_], control_wins: NDArray[np.bool_]) -> None:
        """After ``num`` units, in which runs which arm wins."""
        new = (self._after == 0) & (treatment_wins | control_wins)
        self._after[new] = num
        self._winner[new] = np.where(treatment_wins[new], 1, -1)

    def detections(self) -> Detections:
        """What was recorded."""
        return Detections(after=self._after, winner=self._winner)


def saved(adjusted: Detections, plain: Detections) -> str:
    """By how much fewer units the median of one method is, in whole percent; a dash if there is no median."""
    if not math.isfinite(adjusted.median + plain.median):
        return "–"
    return f"{round(100 * (1 - adjusted.median / plain.median)) or 0} %"


def percent(share: float) -> str:
    """A share with one decimal."""
    return f"{100 * share:.1f} %"


def count(num: float) -> str:
    """A number of units; a dash if it is infinite."""
    return f"{num:,.0f}" if math.isfinite(num) else "–"
