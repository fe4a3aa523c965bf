"""A fine-tuning job as a record: its statuses, methods, events, checkpoints and the claim of a worker."""

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

Method = Literal["auto", TrainingMethod]
"""``auto`` chooses by what the rows say."""

METHODS: Final[Mapping[str, Method]] = {
    **{traits.api_name or method: method for method, traits in METHOD_TRAITS.items()},
    "auto": "auto",
}
"""By the names that they have over HTTP and on the command line."""

FEEDBACK_FILE: Final = "feedback"
"""As a training file: the answers of the adapter and the feedback on them, as they are when the run begins."""

CONTROL_KEY: Final = "graftwork_control"
"""In the metadata of a job that begins with the base and learns all that earlier jobs of its adapter learned from: the
version that would have been continued otherwise, which its own is held against."""

Level = Literal["info", "warn", "error"]


class ClaimLost(Conflict):
    """The claim is another's by now, or the job was cancelled: stop working on it. Nothing was written."""

    default_code = "claim_lost"


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """What is asked for.

    Attributes:
        model: as the request has it: the base's id, or what to continue from. parent: the version that is continued.
        name: the adapter that gets a version. method: ``auto`` chooses by the rows.
        hyperparameters: by name, ``"auto"`` or a number; what is not there is ``"auto"``.
        training_file: a file's id, or `FEEDBACK_FILE`. validation_file: a file's id.
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
    """One job as it stands.

    Attributes:
        attempts: those under way or in a row without a new checkpoint.
        publishing: its version is being registered: it can no longer be cancelled.
        relayed_bytes: how much of the run's progress file has become events.
        progress: the last measurement: step, total, loss, eta_seconds, phase, … version: ``name@n``.
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
        return self.status in ENDED_STATUSES


@dataclass(frozen=True, kw_only=True)
class NewJobEvent:
    """Something that happened; with ``data`` it is a measurement."""

    message: str
    level: Level = "info"
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class JobEvent(NewJobEvent):
    id: int
    at: datetime
    job: str


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A step after which the run was saved whole."""

    id: int
    at: datetime
    job: str
    step: int
    metrics: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One worker's hold of one job. ``token`` grows with every change of hands."""

    job: Job
    owner: str
    token: int
