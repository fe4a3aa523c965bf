"""Claims that are renewed for as long as somebody works on their jobs.

From a thread of its own: a push may take minutes. Knows nothing of what is done meanwhile.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field

from graftwork.adapters.errors import GraftworkError
from graftwork.adapters.jobs import Claim, Jobs, Lost

log = logging.getLogger(__name__)


@dataclass
class Heartbeat:
    """Renews the claims that it holds, each for ``seconds``; ``lost`` are the jobs whose claim is another's by now, or
    nobody's."""

    jobs: Jobs
    seconds: float
    claims: dict[str, Claim] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)

    def hold(self, claim: Claim) -> None:
        self.lost.discard(claim.job.id)
        self.claims[claim.job.id] = claim

    def let_go(self, claim: Claim) -> None:
        self.claims.pop(claim.job.id, None)

    def beat(self, stopping: threading.Event) -> None:
        while not stopping.wait(min(self.seconds / 3, 2.0)):
            for id, claim in list(self.claims.items()):
                try:
                    self.jobs.renew(claim, seconds=self.seconds)
                except Lost:
                    self.lost.add(id)
                except GraftworkError:
                    log.exception("the claim on %s cannot be renewed; trying again", id)
