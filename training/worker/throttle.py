"""When a run pauses for the sake of those who ask: a share of the time, so that serving keeps at least the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PERIOD_SECONDS: Final = 1.0
"""So long is one round of running and pausing."""

LINGER_SECONDS: Final = 1.0
"""So long after the last request the server still counts as busy: clients that ask one thing after another."""


@dataclass(kw_only=True)
class Throttle:
    """``share``: how much of the time a run may go on while the server is busy. 0 pauses it, 1 never does."""

    share: float
    busy_at: float = float("-inf")

    def record(self, busy: bool, now: float) -> None:
        if busy:
            self.busy_at = now

    def should_pause(self, now: float) -> bool:
        if now - self.busy_at > LINGER_SECONDS or self.share >= 1:
            return False
        return (now % PERIOD_SECONDS) >= self.share * PERIOD_SECONDS
