"""Uploaded files."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class UploadedFile:
    """An uploaded file, or a result file of a job or batch. ``bytes`` is its size."""

    id: str
    bytes: int
    created_at: datetime
    filename: str
    purpose: str
    status: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Deleted:
    """The confirmation of a deletion."""

    id: str
    deleted: bool
