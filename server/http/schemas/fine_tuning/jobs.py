"""OpenAI's fine-tuning job objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from typing_extensions import TypedDict


class JobErrorObject(TypedDict):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class JobDetailsObject(TypedDict):
    """What OpenAI's job has no field for."""

    adapter: str
    parent: str | None
    method: str
    created_by: str
    attempts: int
    started_at: float | None
    progress: Mapping[str, Any]
    metrics: Mapping[str, Any]


class JobObject(TypedDict):
    """One training run. ``fine_tuned_model`` is the version that it made."""

    id: str
    object: Literal["fine_tuning.job"]
    created_at: int
    finished_at: int | None
    estimated_finish: int | None
    status: str
    error: JobErrorObject | None
    model: str
    fine_tuned_model: str | None
    organization_id: str
    training_file: str
    validation_file: str | None
    result_files: Sequence[str]
    trained_tokens: int | None
    seed: int
    hyperparameters: Mapping[str, Any]
    method: Mapping[str, Any] | None
    metadata: Mapping[str, str]
    integrations: Sequence[Any]
    graftwork: JobDetailsObject


class JobEventObject(TypedDict):
    """Something that happened to a job; of the ``type`` metrics it is a measurement, in ``data``."""

    id: str
    object: Literal["fine_tuning.job.event"]
    created_at: int
    level: str
    message: str
    type: Literal["metrics", "message"]
    data: Mapping[str, Any]


class JobCheckpointObject(TypedDict):
    """A step after which a run was saved whole."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"]
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: Mapping[str, Any]
