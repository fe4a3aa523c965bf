"""The keeper's duty for learning: begins the rounds that are due, and takes the next step of those under way."""

from __future__ import annotations

import logging
from functools import partial

from graftwork.adapters.learning.rounds.policies import LearningPolicies
from graftwork.adapters.learning.rounds.rounds import Rounds
from graftwork.adapters.storage.leases import Lease, Leases

log = logging.getLogger(__name__)


class RoundScheduler:
    """Begins the rounds of all learning policies of one database, and carries them on.

    Args:
        policies: The learning policies.
        rounds: Their rounds.
        leases: Of the database.
    """

    def __init__(self, policies: LearningPolicies, rounds: Rounds, leases: Leases) -> None:
        self._policies = policies
        self._rounds = rounds
        self._leases = leases

    def run(self, lease: Lease) -> None:
        """Take every step that can be taken. A round whose step fails does not hold up the others.

        Args:
            lease: Is checked in the transaction of every write.

        Raises:
            ExceptionGroup: The failures of single rounds.
        """

        failures: list[Exception] = []
        steps = [partial(self._advance, round_.id, lease) for round_ in self._rounds.unended()]
        steps += [partial(self._begin, policy.name, lease) for policy, status in self._policies.all() if status.due]
        for step in steps:
            try:
                step()
            except Exception as failure:
                failures.append(failure)
        if failures:
            raise ExceptionGroup("rounds that could not be carried on", failures)

    def _advance(self, id: str, lease: Lease) -> None:
        # Several steps may be possible at once, as after a restart.
        while (round_ := self._rounds.advance(id, fence=partial(self._leases.check, lease=lease))) is not None:
            log.info("round %d of %s, %s: %s", round_.number, round_.adapter, round_.state, round_.reason)

    def _begin(self, name: str, lease: Lease) -> None:
        round_ = self._policies.begin(name, fence=partial(self._leases.check, lease=lease))
        if round_ is not None:
            log.info("round %d of %s began as %s: %s", round_.number, round_.adapter, round_.job, round_.reason)
