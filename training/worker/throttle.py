"""The throttle: a run pauses for a share of the time while the server is busy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PERIOD_SECONDS: Final = 1.0
"""Duration of one cycle of running and pausing."""

LINGER_SECONDS: Final = 1.0
"""Time after the last request in which the server still counts as busy, since clients may send another one."""


@dataclass(kw_only=True)
class Throttle:
    """Decides when a run pauses.

    Attributes:
        share: share of the time in which a run continues while the server is busy: 0 pauses it, 1 never does.
        busy_at: when the server was last busy, in seconds of the monotonic clock.
    """

    share: float
    busy_at: float = float("-inf")

    def record(self, busy: bool, now: float) -> None:
        """Record whether the server is busy; ``now`` is in seconds of the monotonic clock."""
        if busy:
            self.busy_at = now

    def should_pause(self, now: float) -> bool:
        """Whether a run has to pause now."""
        if now - self.busy_at > LINGER_SECONDS or self.share >= 1:
            return False
        return (now % PERIOD_SECONDS) >= self.share * PERIOD_SECONDS
