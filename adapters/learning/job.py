"""A fine-tuning job as a record: its statuses, methods, events, checkpoints, and the claim of a worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal, get_args

from graftwork.adapters.errors import Conflict
from graftwork.adapters.learning.methods import METHOD_TRAITS, TrainingMethod

JobStatus = Literal["validating_files", "queued", "running", "succeeded", "failed", "cancelled"]
STATUSES: Final[tuple[JobStatus, ...]] = get_args(JobStatus)
ENDED_STATUSES: Final[frozenset[JobStatus]] = frozenset({"succeeded", "failed", "cancelled"})

WaitingStatus = Literal["validating_files", "queued"]
"""Statuses in which a job waits for a worker."""

Method = Literal["auto", TrainingMethod]
"""``auto`` chooses a method that fits the rows."""

METHODS: Final[Mapping[str, Method]] = {
    **{traits.api_name or method: method for method, traits in METHOD_TRAITS.items()},
    "auto": "auto",
}
"""By the names that they have over HTTP and on the command line."""

FEEDBACK_FILE: Final = "feedback"
"""The training file that means the adapter's answers and the feedback on them when the run begins."""

CONTROL_KEY: Final = "graftwork_control"
"""A key of the metadata of control jobs, which begin with the base and train on everything that earlier jobs of the
adapter were trained on. Its value is the version that would have been continued otherwise, for comparison."""

Level = Literal["info", "warn", "error"]


class ClaimLost(Conflict):
    """Another worker has the claim, or the job was cancelled: stop working on it. Nothing was written."""

    default_code = "claim_lost"


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """A job to be submitted.

    Attributes:
        model: As the request names it: the base's id, or the version to continue.
        name: The adapter that gets a version.
        parent: The version that is continued; ``None``: the base.
        method: ``auto`` chooses by the rows.
        hyperparameters: By name, ``"auto"`` or a value; missing ones are ``"auto"``.
        seed: Of the run's random numbers.
        training_file: A file's id, a data set's reference, or ``FEEDBACK_FILE``.
        validation_file: A file's id.
        metadata: The client's.
    """

    model: str
    name: str
    parent: str | None = None
    method: Method = "auto"
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    training_file: str
    validation_file: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Job(NewJob):
    """A job.

    Attributes:
        number: Its place in the queue.
        owner: The worker that has claimed it.
        token: Grows with every claim.
        lease_until: When the claim ends unless renewed.
        attempts: Attempts, the current one included, since the last new checkpoint.
        publishing: Its version is being registered: it can no longer be cancelled.
        relayed_bytes: How much of the run's progress file has become events.
        progress: The last measurement: step, total, loss, eta_seconds, phase, …
        version: The result, ``name@n``.
        error: code, message, param.
    """

    number: int
    id: str
    created_at: datetime
    created_by: str
    key_id: str
    idempotency_key: str | None
    status: JobStatus
    started_at: datetime | None
    finished_at: datetime | None
    owner: str | None
    token: int
    lease_until: datetime | None
    attempts: int
    publishing: bool
    relayed_bytes: int
    progress: Mapping[str, Any]
    version: str | None
    result_files: tuple[str, ...]
    trained_tokens: int | None
    metrics: Mapping[str, Any]
    error: Mapping[str, Any] | None

    @property
    def ended(self) -> bool:
        """Whether it has succeeded, failed or been cancelled."""
        return self.status in ENDED_STATUSES


@dataclass(frozen=True, kw_only=True)
class NewJobEvent:
    """An event of a job; with ``data`` it is a measurement."""

    message: str
    level: Level = "info"
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class JobEvent(NewJobEvent):
    """A stored event."""

    id: int
    at: datetime
    job: str


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A step after which the run's whole state was saved."""

    id: int
    at: datetime
    job: str
    step: int
    metrics: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A worker's claim of a job. ``token`` grows with every claim."""

    job: Job
    owner: str
    token: int
