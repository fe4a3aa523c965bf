"""Training jobs, their events and checkpoints.

``status``, ``level`` and ``phase`` are plain strings, since their values may grow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

ENDED: Final = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(frozen=True, kw_only=True, slots=True)
class JobError:
    """Why a job failed."""

    code: str
    message: str
    param: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class JobDetails:
    """The fields of a job that OpenAI's API does not have.

    Attributes:
        adapter: the adapter that gets a version.
        method: the training method.
        parent: the version that is trained further.
        attempts: number of attempts.
        progress: the latest ``phase``, ``step``, ``total``, ``loss`` and ``eta_seconds``; in a search also ``trial``
            and ``trials``, for GRPO also ``reward`` and ``validation_reward``.
        metrics: the metrics of a run that has ended.
    """

    adapter: str
    method: str
    parent: str | None = None
    attempts: int = 0
    progress: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A training job. ``status`` is validating_files, queued, running, succeeded, failed or cancelled."""

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
        """Whether the job has succeeded, failed or was cancelled."""
        return self.status in ENDED


@dataclass(frozen=True, kw_only=True, slots=True)
class JobEvent:
    """An event of a job. With ``type`` metrics it has measurements in ``data``."""

    id: str
    created_at: datetime
    level: str
    message: str
    type: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class JobCheckpoint:
    """A checkpoint of a run."""

    id: str
    created_at: datetime
    step_number: int
    fine_tuned_model_checkpoint: str
    metrics: Mapping[str, Any] = field(default_factory=dict)
