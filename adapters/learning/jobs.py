"""Jobs: a queue of training runs with claims, events, checkpoints and results.

::

    validating_files ──▶ queued ──▶ running ──▶ succeeded
            │               │          │   └──▶ failed
            └───────────────┴──────────┴──────▶ cancelled

A worker claims a job for some seconds and renews the claim; if it dies, the claim expires and another worker continues
the job. Every write of a worker is one transaction with the check that its claim still holds and the job was not
cancelled: a worker that lost its claim gets ``ClaimLost`` and has written nothing. An attempt is counted when it
begins, and not counted if it made progress (a checkpoint) or was ended on purpose; so a job that kills its worker again
and again fails in the end, with that reason.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, Final

from sqlalchemy import (
    Connection,
    insert,
    or_,
    select,
    update,
)

from graftwork.adapters import names
from graftwork.adapters.access import audit, scope
from graftwork.adapters.errors import Conflict, InvalidRequest, NotFound
from graftwork.adapters.learning.data_sets import is_reference
from graftwork.adapters.learning.files import get_file
from graftwork.adapters.learning.job import (
    FEEDBACK_FILE,
    Checkpoint,
    Claim,
    ClaimLost,
    Job,
    JobEvent,
    JobStatus,
    NewJob,
    NewJobEvent,
    WaitingStatus,
)
from graftwork.adapters.learning.job_tables import (
    job_checkpoints_table,
    job_event_of,
    job_events_table,
    job_of,
    jobs_table,
)
from graftwork.adapters.storage.database import Database, Page, check_limit
from graftwork.adapters.webhooks.outbox import add_event

MAX_ATTEMPTS: Final = 3
"""Attempts in a row that may end without a new checkpoint."""

_NEW_JOB_FIELDS = tuple(field.name for field in fields(NewJob))
_FREE = {"owner": None, "lease_until": None}


class Jobs:
    """The jobs of one database. Threads and processes may each have an instance.

    Args:
        database: Where they are stored.
        max_attempts: Attempts in a row that may end without a new checkpoint.
    """

    def __init__(self, database: Database, *, max_attempts: int = MAX_ATTEMPTS) -> None:
        self._database = database
        self._max_attempts = max_attempts

    # -- for the API -----------------------------------------------------------------------------

    def submit(
        self,
        new: NewJob,
        *,
        actor: str,
        key_id: str,
        idempotency_key: str | None = None,
        events: Sequence[NewJobEvent] = (),
        within: Connection | None = None,
    ) -> tuple[Job, bool]:
        """Submit a job.

        Args:
            new: The job.
            actor: Who submits it.
            key_id: The caller's key.
            idempotency_key: If this key has used it before for the same job, that job is returned.
            events: The first events of a new job.
            within: A transaction of the caller's, to be part of.

        Returns:
            The job, and whether it is new.

        Raises:
            InvalidRequest: There is no such file.
            Conflict: The idempotency key was used for another job.
        """
        if idempotency_key is not None:
            names.check_text(idempotency_key, param="idempotency_key", max_chars=256)
        id = f"ftjob-{secrets.token_hex(12)}"
        with self._database.write(within) as connection:
            known = None if idempotency_key is None else _of_key(connection, key_id, idempotency_key)
            if known is not None:
                return _repeated(known, new), False
            # In this transaction, so that no file is deleted before there is a job that needs it.
            _check_file(connection, "training_file", new.training_file)
            _check_file(connection, "validation_file", new.validation_file)
            connection.execute(
                insert(jobs_table).values(
                    {name: getattr(new, name) for name in _NEW_JOB_FIELDS}
                    | {"hyperparameters": dict(new.hyperparameters), "metadata": dict(new.metadata)}
                    | {"id": id, "name": new.name or id}
                    | {"created_at": datetime.now(UTC), "created_by": actor, "key_id": key_id}
                    | {"idempotency_key": idempotency_key, "status": "validating_files", "token": 0, "attempts": 0}
                    | {"publishing": False, "relayed_bytes": 0, "progress": {}, "result_files": [], "metrics": {}}
                )
            )
            audit.made(id)
            _record(connection, id, [NewJobEvent(message=f"Created fine-tuning job: {id}"), *events])
            return get_job(connection, id), True

    def get(self, id: str) -> Job:
        """A job by its id.

        Raises:
            NotFound: It does not exist.
        """
        with self._database.read() as connection:
            return get_job(connection, id)

    def find(
        self,
        *,
        after: str | None = None,
        limit: int = 20,
        name: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Page[Job]:
        """A page of jobs, newest first.

        Args:
            after: The last id of the page before.
            limit: 1 to 100.
            name: Jobs of this adapter.
            metadata: Jobs that have all of these pairs; empty: jobs without any.

        Raises:
            InvalidRequest: ``limit`` is out of range, or ``after`` names no job.
        """
        check_limit(limit)
        visible = scope.rows_about(jobs_table.c.name)
        query = select(jobs_table).where(*visible).order_by(jobs_table.c.number.desc())
        if name is not None:
            query = query.where(jobs_table.c.name == name)
        if metadata is None:
            query = query.limit(limit + 1)
        with self._database.read() as connection:
            if after is not None:
                number = connection.scalar(select(jobs_table.c.number).where(jobs_table.c.id == after, *visible))
                if number is None:
                    raise InvalidRequest(
                        "after names no job: give the id of the last one of the page before", param="after"
                    )
                query = query.where(jobs_table.c.number < number)
            # Filtered here: databases differ in their queries of JSON, and jobs are few.
            found = (job for job in map(job_of, connection.execute(query)) if _has(job, metadata))
            return Page.of(list(islice(found, limit + 1)), limit)

    def events(self, id: str, *, after: int | None = None, limit: int = 20) -> Page[JobEvent]:
        """A page of a job's events, newest first.

        Args:
            id: The job.
            after: The last id of the page before.
            limit: 1 to 100.

        Raises:
            NotFound: The job does not exist.
        """
        check_limit(limit)
        query = (
            select(job_events_table)
            .where(job_events_table.c.job == id)
            .order_by(job_events_table.c.id.desc())
            .limit(limit + 1)
        )
        if after is not None:
            query = query.where(job_events_table.c.id < after)
        with self._database.read() as connection:
            get_job(connection, id)
            return Page.of([job_event_of(row) for row in connection.execute(query)], limit)

    def checkpoints(self, id: str, *, after: int | None = None, limit: int = 20) -> Page[Checkpoint]:
        """A page of a job's checkpoints, newest first. See ``events``."""
        check_limit(limit)
        query = (
            select(job_checkpoints_table)
            .where(job_checkpoints_table.c.job == id)
            .order_by(job_checkpoints_table.c.id.desc())
        )
        if after is not None:
            query = query.where(job_checkpoints_table.c.id < after)
        with self._database.read() as connection:
            get_job(connection, id)
            found = [Checkpoint(**row._mapping) for row in connection.execute(query.limit(limit + 1))]
        return Page.of(found, limit)

    def cancel(self, id: str, *, actor: str, within: Connection | None = None) -> Job:
        """Cancel a job; its worker notices at its next write. Idempotent.

        Args:
            id: The job.
            actor: Who cancels it.
            within: A transaction of the caller's, to be part of.

        Raises:
            NotFound: It does not exist.
            Conflict: It has ended otherwise, or its version is being registered.
        """
        with self._database.write(within) as connection:
            job = get_job(connection, id)
            if job.status == "cancelled":
                return job
            if job.ended:
                raise Conflict(f"{id} has {job.status} already: there is nothing left to cancel", code="job_ended")
            if job.publishing:
                raise Conflict(
                    f"{id} has finished training and its version is being registered: retire the version instead",
                    code="job_publishing",
                )
            _end(connection, id, "cancelled")
            _record(connection, id, [NewJobEvent(message=f"The job was cancelled by {actor}.", level="warn")])
            return get_job(connection, id)

    # -- for workers -------------------------------------------------------------------------------------------------

    def claim(self, owner: str, waiting: WaitingStatus, *, seconds: float) -> Claim | None:
        """Claim the oldest job in a status, for some seconds.

        Running jobs whose claim has expired count as queued. Those without attempts left fail on the way.

        Args:
            owner: The worker.
            waiting: The status.
            seconds: How long the claim holds unless renewed.

        Returns:
            The claim; ``None`` if no job waits.
        """
        wanted = ["queued", "running"] if waiting == "queued" else [waiting]
        query = select(jobs_table).where(jobs_table.c.status.in_(wanted)).order_by(jobs_table.c.number)

        def free(now: datetime) -> Any:
            until = jobs_table.c.lease_until
            # One with far more time left was claimed before the clock was set back, by a worker that died.
            return or_(jobs_table.c.owner.is_(None), until < now, until > now + timedelta(seconds=2 * seconds))

        # Most of the time there is nothing: a read does not block writers.
        with self._database.read() as connection:
            if connection.execute(query.where(free(self._database.now(connection))).limit(1)).one_or_none() is None:
                return None
        with self._database.write() as connection:
            now = self._database.now(connection)
            for row in connection.execute(query.where(free(now))).all():
                job = job_of(row)
                # One that is being published was trained successfully: it must not fail, however often its worker
                # dies.
                if job.attempts >= self._max_attempts and not job.publishing:
                    _fail_lost(connection, job)
                    continue
                changes: dict[str, Any] = {
                    "owner": owner,
                    "token": job.token + 1,
                    "lease_until": now + timedelta(seconds=seconds),
                    "attempts": job.attempts + 1,
                }
                if waiting == "queued":
                    changes |= {"status": "running", "started_at": job.started_at or now}
                    message = "The job has started." if job.started_at is None else "The job goes on."
                    _record(connection, job.id, [NewJobEvent(message=message)])
                _change(connection, job.id, changes)
                return Claim(job=get_job(connection, job.id), owner=owner, token=job.token + 1)
        return None

    def release_owner(self, owner: str) -> None:
        """Release all claims of a worker that was restarted."""
        with self._database.write() as connection:
            connection.execute(update(jobs_table).where(jobs_table.c.owner == owner).values(_FREE))

    def renew(self, claim: Claim, *, seconds: float) -> None:
        """Hold the claim for ``seconds`` from now.

        Raises:
            ClaimLost: The claim is no longer the caller's.
        """
        with self._database.write() as connection:
            _check_claim(connection, claim)
            until = self._database.now(connection) + timedelta(seconds=seconds)
            _change(connection, claim.job.id, {"lease_until": until})

    def report(
        self,
        claim: Claim,
        events: Sequence[NewJobEvent] = (),
        *,
        checkpoints: Mapping[int, Mapping[str, Any]] | None = None,
        progress: Mapping[str, Any] | None = None,
        relayed_bytes: int | None = None,
    ) -> None:
        """Store what a run reports, in one transaction.

        Args:
            claim: The caller's.
            events: In order.
            checkpoints: Their metrics by step.
            progress: The last measurement, merged into the stored one.
            relayed_bytes: How much of the run's progress file has been reported.

        Raises:
            ClaimLost: The claim is no longer the caller's.
        """
        with self._database.write() as connection:
            job = _check_claim(connection, claim)
            changes: dict[str, Any] = {}
            if progress:
                changes["progress"] = {**job.progress, **progress}
            if relayed_bytes is not None:
                changes["relayed_bytes"] = relayed_bytes
            if _save_checkpoints(connection, job.id, checkpoints or {}):
                changes["attempts"] = 1
            if changes:
                _change(connection, job.id, changes)
            _record(connection, job.id, events)

    def mark_validated(self, claim: Claim, events: Sequence[NewJobEvent] = ()) -> None:
        """Queue a job whose files can be trained on.

        Raises:
            ClaimLost: The claim is no longer the caller's.
        """
        with self._database.write() as connection:
            _check_claim(connection, claim)
            _change(connection, claim.job.id, {"status": "queued", "attempts": 0, **_FREE})
            _record(connection, claim.job.id, [*events, NewJobEvent(message="Files validated, the job is queued.")])

    def release(self, claim: Claim, reason: str, *, forgiven: bool) -> None:
        """Give the claim up, so that another worker continues the job.

        Args:
            claim: The caller's.
            reason: For the job's events.
            forgiven: The attempt was ended on purpose and does not count. Else the job fails if it was the last one.

        Raises:
            ClaimLost: The claim is no longer the caller's.
        """
        with self._database.write() as connection:
            job = _check_claim(connection, claim)
            if not forgiven and job.attempts >= self._max_attempts:
                _fail_lost(connection, job, reason)
                return
            status = "validating_files" if job.status == "validating_files" else "queued"
            attempts = job.attempts - forgiven
            _change(connection, job.id, {"status": status, "attempts": attempts, **_FREE})
            _record(connection, job.id, [NewJobEvent(message=reason, level="info" if forgiven else "warn")])

    def publish(self, claim: Claim) -> None:
        """Record that the version is about to be pushed: from now on the job cannot be cancelled.

        Raises:
            ClaimLost: The claim is no longer the caller's.
        """
        with self._database.write() as connection:
            _check_claim(connection, claim)
            _change(connection, claim.job.id, {"publishing": True})

    def succeed(
        self,
        claim: Claim,
        version: str,
        *,
        metrics: Mapping[str, Any],
        trained_tokens: int | None,
        result_files: Sequence[str] = (),
        events: Sequence[NewJobEvent] = (),
    ) -> None:
        """End a job with its version.

        Args:
            claim: The caller's.
            version: ``name@n``.
            metrics: Of the run.
            trained_tokens: Tokens of all training rows and epochs.
            result_files: Ids of files.
            events: Added between the last two.

        Raises:
            ClaimLost: The claim is no longer the caller's.
        """
        facts = {"metrics": dict(metrics), "trained_tokens": trained_tokens, "result_files": list(result_files)}
        with self._database.write() as connection:
            _check_claim(connection, claim)
            _end(connection, claim.job.id, "succeeded", version=version, **facts)
            created = NewJobEvent(message=f"New fine-tuned model created: {version}")
            _record(
                connection, claim.job.id, [created, *events, NewJobEvent(message="The job has successfully completed.")]
            )

    def fail(self, claim: Claim, *, code: str, message: str, param: str | None = None) -> None:
        """End a job without a version.

        Raises:
            ClaimLost: The claim is no longer the caller's.
        """
        with self._database.write() as connection:
            _check_claim(connection, claim)
            _fail(connection, claim.job.id, {"code": code, "message": message, "param": param})


# --- inside a transaction ---------------------------------------------------------------------------------------------


def unfinished_job_using(connection: Connection, file_id: str) -> str | None:
    """The id of a job that has not ended and needs this file, if there is one."""
    uses = or_(jobs_table.c.training_file == file_id, jobs_table.c.validation_file == file_id)
    return connection.scalar(select(jobs_table.c.id).where(uses, jobs_table.c.finished_at.is_(None)).limit(1))


def _check_file(connection: Connection, param: str, id: str | None) -> None:
    if id is None or id == FEEDBACK_FILE or is_reference(id):
        return
    try:
        get_file(connection, id)
    except NotFound as error:
        raise InvalidRequest(error.message, param=param, code=error.code) from None


def _check_claim(connection: Connection, claim: Claim) -> Job:
    job = get_job(connection, claim.job.id)
    if job.status == "cancelled":
        raise ClaimLost(f"{job.id} was cancelled")
    if (job.owner, job.token) != (claim.owner, claim.token):
        raise ClaimLost(f"{job.id} has passed to another worker")
    return job


def _save_checkpoints(connection: Connection, id: str, metrics_by_step: Mapping[int, Mapping[str, Any]]) -> bool:
    """Store new checkpoints. Returns whether there were any: a resumed run reaches the same steps again."""
    known = set(connection.scalars(select(job_checkpoints_table.c.step).where(job_checkpoints_table.c.job == id)))
    now = datetime.now(UTC)
    new = [
        {"at": now, "job": id, "step": step, "metrics": dict(metrics)}
        for step, metrics in sorted(metrics_by_step.items())
        if step not in known
    ]
    if new:
        connection.execute(insert(job_checkpoints_table), new)
    return bool(new)


def _fail_lost(connection: Connection, job: Job, reason: str | None = None) -> None:
    """Fail a job that has no attempts left."""
    message = (
        f"The run ended {job.attempts} times without getting anywhere; the last time: "
        f"{reason or 'its worker died'} Look into the server's log around that time; memory is the usual reason."
    )
    _fail(connection, job.id, {"code": "too_many_attempts", "message": message, "param": None})


def _fail(connection: Connection, id: str, error: Mapping[str, Any]) -> None:
    _end(connection, id, "failed", error=dict(error))
    _record(connection, id, [NewJobEvent(message=f"The job failed: {error['message']}", level="error")])


def _end(connection: Connection, id: str, status: JobStatus, **facts: Any) -> None:
    _change(connection, id, {"status": status, "finished_at": datetime.now(UTC), **_FREE, **facts})
    add_event(connection, f"fine_tuning.job.{status}", {"id": id})


def _change(connection: Connection, id: str, values: Mapping[str, Any]) -> None:
    connection.execute(update(jobs_table).where(jobs_table.c.id == id).values(values))


def _record(connection: Connection, id: str, events: Sequence[NewJobEvent]) -> None:
    now = datetime.now(UTC)
    rows = [
        {
            "at": now,
            "job": id,
            "level": event.level,
            "kind": "metrics" if event.data else "message",
            "message": event.message,
            "data": dict(event.data),
        }
        for event in events
    ]
    if rows:
        connection.execute(insert(job_events_table), rows)


def _of_key(connection: Connection, key_id: str, idempotency_key: str) -> Job | None:
    same = (jobs_table.c.key_id == key_id, jobs_table.c.idempotency_key == idempotency_key)
    row = connection.execute(select(jobs_table).where(*same)).one_or_none()
    return None if row is None else job_of(row)


def _repeated(known: Job, new: NewJob) -> Job:
    for name in _NEW_JOB_FIELDS:
        was, wanted = getattr(known, name), getattr(new, name)
        if was != wanted and not (name == "name" and not wanted):
            raise Conflict(
                f"this idempotency key was used before, for a job with another {name}: use a new key for every job",
                param="idempotency_key",
                code="idempotency_key_reused",
            )
    return known


def _has(job: Job, metadata: Mapping[str, str] | None) -> bool:
    if not metadata:
        return metadata is None or not job.metadata
    return metadata.items() <= job.metadata.items()


def get_job(connection: Connection, id: str) -> Job:
    """A job by its id.

    Raises:
        NotFound: It does not exist.
    """
    row = connection.execute(select(jobs_table).where(jobs_table.c.id == id)).one_or_none()
    if row is None or not scope.visible(row.name):
        raise NotFound(
            f"there is no job {names.quoted(id)}: graftwork jobs list shows those there are", code="job_not_found"
        )
    return job_of(row)
