"""Renewal of the worker's claims on jobs, in a thread of its own, since a push may take minutes."""

from __future__ import annotations

import logging
import threading

from graftwork.adapters.errors import Unavailable
from graftwork.adapters.learning.job import Claim, ClaimLost
from graftwork.adapters.learning.jobs import Jobs

log = logging.getLogger(__name__)


class Heartbeat:
    """Renews the claims that it holds.

    It may hold two claims on one job: one for the check of its files, and the next for its run, which may begin before
    the first one is let go of.

    Args:
        jobs: the queue of jobs.
        seconds: duration of a claim after each renewal.
    """

    def __init__(self, jobs: Jobs, seconds: float) -> None:
        self.seconds = seconds
        self._jobs = jobs
        self._claims: dict[tuple[str, int], Claim] = {}
        self._lost: set[tuple[str, int]] = set()

    def hold(self, claim: Claim) -> None:
        """Renew a claim from now on."""
        self._claims[_key(claim)] = claim

    def let_go(self, claim: Claim) -> None:
        """Stop renewing a claim."""
        self._claims.pop(_key(claim), None)
        self._lost.discard(_key(claim))

    def has_lost(self, claim: Claim) -> bool:
        """Whether a renewal failed, because the job was cancelled or claimed by another worker."""
        return _key(claim) in self._lost

    def beat(self, stopping: threading.Event) -> None:
        """Renew all claims regularly until the event is set."""
        while not stopping.wait(min(self.seconds / 3, 2.0)):
            for key, claim in list(self._claims.items()):
                try:
                    self._jobs.renew(claim, seconds=self.seconds)
                except ClaimLost:
                    self._lost.add(key)
                except Unavailable as error:
                    log.warning("the claim on %s cannot be renewed; trying again: %s", claim.job.id, error)
                except Exception:
                    # The thread must not end: all claims would expire while their jobs are running.
                    log.exception("the claim on %s cannot be renewed; trying again", claim.job.id)


def _key(claim: Claim) -> tuple[str, int]:
    return claim.job.id, claim.token
