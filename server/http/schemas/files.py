"""OpenAI's file objects."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict


class FileObject(TypedDict):
    """An uploaded file, or the results of a job or batch."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: None
    filename: str
    purpose: str
    status: Literal["processed"]
    status_details: None


class DeletedFileObject(TypedDict):
    """A file that was deleted."""

    id: str
    object: Literal["file"]
    deleted: bool
