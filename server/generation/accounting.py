"""What is measured while an answer is generated and counted when it has ended: latencies, tokens, traffic, and the row
of the interaction log.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


@dataclass(slots=True)
class GenerationTimings:
    """One answer's moments, by ``time.monotonic``: admitted, taken up by the engine, first and latest token.

    ``measured``: somebody waits for it, so that the metrics count.
    """

    began: float = field(default_factory=time.monotonic)
    scheduled_at: float | None = None
    first: float | None = None
    last: float | None = None
    measured: bool = True

    def ms(self, moment: float | None) -> float | None:
        """From admission to ``moment``."""
        return None if moment is None else round((moment - self.began) * 1e3, 3)
