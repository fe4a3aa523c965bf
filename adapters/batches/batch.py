"""A batch as a record: its statuses, its counts, what is wrong with its input, its results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Literal, get_args

BatchStatus = Literal[
    "validating", "in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled"
]
STATUSES: Final[tuple[BatchStatus, ...]] = get_args(BatchStatus)
ENDED_STATUSES: Final[frozenset[BatchStatus]] = frozenset({"completed", "failed", "expired", "cancelled"})

CompletionWindow = Literal["24h"]
"""How long a batch may take; OpenAI has this one."""

COMPLETION_WINDOWS: Final[Mapping[str, timedelta]] = {"24h": timedelta(hours=24)}


@dataclass(frozen=True, kw_only=True)
class BatchError:
    """What is wrong with a batch, in OpenAI's words: the ``line`` of its input file, if it is one line, from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True, kw_only=True)
class BatchResult:
    """What came of one request.

    Attributes:
        line: Of the input file, from 1.
        failed: Whether it was answered with an error.
        content: The line of the output or error file, JSON without a line break.
    """

    line: int
    failed: bool
    content: str


@dataclass(frozen=True, kw_only=True)
class NewBatch:
    """A batch to be created.

    Attributes:
        endpoint: The path that its requests are for.
        input_file: The id of the file with its requests.
        completion_window: How long it may take.
        metadata: The client's.
    """

    endpoint: str
    input_file: str
    completion_window: CompletionWindow = "24h"
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Batch(NewBatch):
    """A batch.

    Attributes:
        number: Batches begin in this order.
        created_by: The name of the key that made it.
        key_id: That key: the batch is its own, and its requests are that key's.
        expires_at: When what is not answered yet is given up.
        total: Requests in its file; 0 before the file was checked.
        completed: Requests that were answered.
        failed: Requests that were answered with an error.
        errors: Why it failed.
        waiting: What it waits for, where people can do something about it.
        output_file: The id of the file with its answers; ``None``: there are none, or not yet.
        error_file: The id of the file with its errors.
    """

    number: int
    id: str
    created_at: datetime
    created_by: str
    key_id: str
    idempotency_key: str | None
    status: BatchStatus
    expires_at: datetime
    in_progress_at: datetime | None
    finalizing_at: datetime | None
    completed_at: datetime | None
    failed_at: datetime | None
    expired_at: datetime | None
    cancelling_at: datetime | None
    cancelled_at: datetime | None
    total: int
    completed: int
    failed: int
    errors: tuple[BatchError, ...]
    waiting: str | None
    output_file: str | None
    error_file: str | None

    @property
    def ended(self) -> bool:
        """Whether nothing of it will change any more."""
        return self.status in ENDED_STATUSES

    @property
    def outcome(self) -> BatchStatus:
        """The status in which it ends when its files are written, by what has happened to it."""
        if self.cancelling_at is not None:
            return "cancelled"
        if self.errors:
            return "failed"
        return "completed" if self.completed + self.failed == self.total else "expired"
