"""OpenAI's batch objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from typing_extensions import TypedDict


class BatchErrorObject(TypedDict):
    """What is wrong with a batch; ``line`` is that of its input file."""

    code: str
    message: str
    line: int | None
    param: str | None


class BatchErrorsObject(TypedDict):
    """Why a batch failed."""

    object: Literal["list"]
    data: Sequence[BatchErrorObject]


class RequestCountsObject(TypedDict):
    """A batch's requests: all, those that were answered, and those that were answered with an error."""

    total: int
    completed: int
    failed: int


class BatchDetailsObject(TypedDict):
    """What OpenAI's batch has no field for."""

    created_by: str
    waiting: str | None


class BatchObject(TypedDict):
    """Many requests in one file. Its answers and errors are files when it has ended."""

    id: str
    object: Literal["batch"]
    endpoint: str
    errors: BatchErrorsObject | None
    input_file_id: str
    completion_window: str
    status: str
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCountsObject
    metadata: Mapping[str, str]
    graftwork: BatchDetailsObject


class BatchListObject(TypedDict):
    """One page of batches. With ``has_more``, ask again with ``last_id`` as ``after``."""

    object: Literal["list"]
    data: Sequence[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool
