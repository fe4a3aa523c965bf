"""Batches of requests.

``status`` is a plain string, since its values may grow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

ENDED: Final = frozenset({"completed", "failed", "expired", "cancelled"})


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchError:
    """Why a batch failed; ``line`` is a line of its input file, from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchErrors:
    """The errors of a batch."""

    data: tuple[BatchError, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestCounts:
    """The requests of a batch: all, those that were answered, and those that were answered with an error."""

    total: int
    completed: int
    failed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchDetails:
    """The fields of a batch that OpenAI's API does not have.

    Attributes:
        created_by: the name of the key that made it.
        waiting: what it waits for, such as room on the server's disk.
    """

    created_by: str
    waiting: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """A batch. ``status`` is validating, in_progress, finalizing, completed, failed, expired, cancelling or cancelled.

    When it has ended, ``output_file_id`` is the file with its answers and ``error_file_id`` that with its errors, each
    None if it would be empty.
    """

    id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    status: str
    created_at: datetime
    expires_at: datetime
    request_counts: RequestCounts
    graftwork: BatchDetails
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: BatchErrors | None = None
    in_progress_at: datetime | None = None
    finalizing_at: datetime | None = None
    completed_at: datetime | None = None
    failed_at: datetime | None = None
    expired_at: datetime | None = None
    cancelling_at: datetime | None = None
    cancelled_at: datetime | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether nothing of it will change any more."""
        return self.status in ENDED
