"""What the server says of files, training jobs and learning policies, as frozen dataclasses.

Field names are those of the wire, times are in UTC.
``status``, ``level`` and ``phase`` are plain strings, since their values may grow. Knows nothing of HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

ENDED: Final = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """An uploaded file, or the results of a job. ``bytes`` is its size."""

    id: str
    bytes: int
    created_at: datetime
    filename: str
    purpose: str
    status: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Deleted:
    """That something is gone."""

    id: str
    deleted: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class JobError:
    """Why a job failed."""

    code: str
    message: str
    param: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class JobDetails:
    """What OpenAI's job has no field for: the adapter that gets a version, the version that is continued, the last
    measurement (``phase``, ``step``, ``total``, ``loss``, ``eta_seconds``; of a search ``trial`` and ``trials``; of
    GRPO ``reward`` and ``validation_reward``), the metrics of a run that has ended."""

    adapter: str
    method: str
    parent: str | None = None
    attempts: int = 0
    progress: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One training run. ``status``: validating_files, queued, running, succeeded, failed or cancelled."""

    id: str
    created_at: datetime
    status: str
    model: str
    training_file: str
    graftwork: JobDetails
    seed: int
    validation_file: str | None = None
    fine_tuned_model: str | None = None
    finished_at: datetime | None = None
    estimated_finish: datetime | None = None
    error: JobError | None = None
    result_files: tuple[str, ...] = ()
    trained_tokens: int | None = None
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] | None = None

    @property
    def ended(self) -> bool:
        return self.status in ENDED


@dataclass(frozen=True, kw_only=True, slots=True)
class JobEvent:
    """Something that happened to a job; of the ``type`` metrics it is a measurement, in ``data``."""

    id: str
    created_at: datetime
    level: str
    message: str
    type: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class JobCheckpoint:
    """A step after which a run was saved whole."""

    id: str
    created_at: datetime
    step_number: int
    fine_tuned_model_checkpoint: str
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class LearningRound:
    """One round of a learning policy: its job, and what came of it. ``control``: it began with the base;
    ``continues`` is the version that it continued otherwise. ``gates_passed`` ``None``: held against none (yet)."""

    number: int
    job: str
    control: bool
    status: str
    submitted_at: datetime
    continues: str | None = None
    finished_at: datetime | None = None
    version: str | None = None
    gates_passed: bool | None = None
    refusals: tuple[str, ...] = ()
    error: str | None = None

    @property
    def ended(self) -> bool:
        return self.status in ENDED


@dataclass(frozen=True, kw_only=True, slots=True)
class LearningPolicy:
    """When an adapter learns by itself: ``after`` so many new judgements, or ``every_days`` with ``at_least`` so many;
    ``None`` is off. And how it stands: the new ``judgements``, what it ``waits_for`` unless a round is ``due``."""

    adapter: str
    after: int | None
    every_days: float | None
    at_least: int
    control_every: int | None
    method: str
    hyperparameters: Mapping[str, Any]
    actor: str
    created_at: datetime
    updated_at: datetime
    judgements: int
    due: bool
    waits_for: str | None
    rounds: int
    next_is_control: bool
    last_round: LearningRound | None
