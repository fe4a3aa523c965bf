"""Claims that are renewed for as long as somebody works on their jobs.

From a thread of its own: a push may take minutes.
"""

from __future__ import annotations

import logging
import threading

from graftwork.adapters.learning.job import Claim, ClaimLost
from graftwork.adapters.learning.jobs import Jobs

log = logging.getLogger(__name__)


class Heartbeat:
    """Renews the claims that it holds, each for ``seconds`` at a time.

    Two claims on one job are two: a job's files are checked under one, and its run may begin under the next before
    the first is let go of.
    """

    def __init__(self, jobs: Jobs, seconds: float) -> None:
        self.seconds = seconds
        self._jobs = jobs
        self._claims: dict[tuple[str, int], Claim] = {}
        self._lost: set[tuple[str, int]] = set()

    def hold(self, claim: Claim) -> None:
        self._claims[_key(claim)] = claim

    def let_go(self, claim: Claim) -> None:
        self._claims.pop(_key(claim), None)
        self._lost.discard(_key(claim))

    def has_lost(self, claim: Claim) -> bool:
        """Whether the job was cancelled, or is another's by now."""
        return _key(claim) in self._lost

    def beat(self, stopping: threading.Event) -> None:
        while not stopping.wait(min(self.seconds / 3, 2.0)):
            for key, claim in list(self._claims.items()):
                try:
                    self._jobs.renew(claim, seconds=self.seconds)
                except ClaimLost:
                    self._lost.add(key)
                except Exception:
                    # Whatever it is, a thread that ended would let all claims run out while their jobs are worked on.
                    log.exception("the claim on %s cannot be renewed; trying again", claim.job.id)


def _key(claim: Claim) -> tuple[str, int]:
    return claim.job.id, claim.token
