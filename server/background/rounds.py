"""The keeper's duty for learning policies: begins the rounds that are due and logs how they ended."""

from __future__ import annotations

import logging

from graftwork.adapters.learning.gate_results import gate_summary, version_by_id
from graftwork.adapters.learning.job import Job
from graftwork.adapters.learning.jobs import Jobs
from graftwork.adapters.learning.policies import LearningPolicies
from graftwork.adapters.registry import Registry
from graftwork.adapters.storage.leases import Lease, Leases

log = logging.getLogger(__name__)


class RoundScheduler:
    """Begins the rounds of all learning policies of one database.

    Args:
        policies: The learning policies.
        queue: Where rounds are queued as jobs.
        registry: Has the gate results of versions.
        leases: Of the database.
    """

    def __init__(self, policies: LearningPolicies, queue: Jobs, registry: Registry, leases: Leases) -> None:
        self._policies = policies
        self._queue = queue
        self._registry = registry
        self._leases = leases
        self._running: set[str] = set()

    def run(self, lease: Lease) -> None:
        """Begin all rounds that are due. An adapter whose round cannot be begun does not hold up the others.

        Args:
            lease: Is checked in the transaction of every write.

        Raises:
            ExceptionGroup: The failures of single policies.
        """
        failures: list[Exception] = []
        for policy, standing in self._policies.all():
            if standing.last is not None and not standing.last.ended:
                self._running.add(standing.last.id)
            if not standing.due:
                continue
            try:
                job = self._policies.begin(policy.name, fence=lambda held: self._leases.check(held, lease))
            except Exception as failure:
                failures.append(failure)
                continue
            if job is not None:
                self._running.add(job.id)
                log.info(
                    "learning policy of %s: round %s began as %s, after %d new judgements, from %s",
                    job.name,
                    job.metadata["round"],
                    job.id,
                    standing.judgements,
                    job.model,
                )
        self._log_ended()
        if failures:
            raise ExceptionGroup("rounds that could not be begun", failures)

    def _log_ended(self) -> None:
        """Log the results of rounds that ended since the last run."""
        for id in sorted(self._running):
            job = self._queue.get(id)
            if job.ended:
                self._running.discard(id)
                result = self._result_of(job)
                log.info("learning policy of %s: round %s ended as %s: %s", job.name, job.metadata["round"], id, result)

    def _result_of(self, job: Job) -> str:
        """A finished round's version and gate results, or its error, for the log."""
        if job.version is None:
            return f"{job.status}, {job.error['message']}" if job.error else job.status
        gates = gate_summary(version_by_id(self._registry, job.version))
        return f"{job.version}, {'not held against gates' if gates is None else gates}"
