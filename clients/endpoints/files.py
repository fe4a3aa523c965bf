"""Uploaded rows to learn from, and what jobs measured."""

from __future__ import annotations

from pathlib import Path

from graftwork.clients.endpoints.parts import path_of, reader_of, without_none
from graftwork.clients.http.calls import SLOW_TIMEOUT, Call, CallRequest, MultipartUpload, ProgressCallback
from graftwork.clients.types.files import Deleted, UploadedFile
from graftwork.clients.types.pages import Page


def upload(path: str | Path, *, progress: ProgressCallback | None = None) -> Call[UploadedFile]:
    """Upload rows to learn from, streamed from disk; ``progress`` is told the bytes sent and the bytes in all."""
    upload = MultipartUpload(files=(Path(path),), fields={"purpose": "fine-tune"}, progress=progress, field="file")
    return Call(
        request=CallRequest(method="POST", path=path_of("files"), upload=upload, read_timeout=SLOW_TIMEOUT),
        read=reader_of(UploadedFile),
    )


def list(*, purpose: str | None = None, after: str | None = None, limit: int | None = None) -> Call[Page[UploadedFile]]:
    """A page of files, newest first; ``purpose`` is fine-tune or fine-tune-results."""
    query = without_none(purpose=purpose, after=after, limit=limit)
    return Call(
        request=CallRequest(method="GET", path=path_of("files"), query=query), read=reader_of(Page[UploadedFile])
    )


def get(id: str) -> Call[UploadedFile]:
    """One file."""
    return Call(request=CallRequest(method="GET", path=path_of("files", id)), read=reader_of(UploadedFile))


def content(id: str) -> Call[str]:
    """What a file holds, as text."""
    request = CallRequest(method="GET", path=path_of("files", id, "content"), read_timeout=SLOW_TIMEOUT)
    return Call(request=request, read=lambda reply: reply.text)


def delete(id: str) -> Call[Deleted]:
    """Delete a file; raises ``ConflictError`` while a job needs it."""
    return Call(request=CallRequest(method="DELETE", path=path_of("files", id)), read=reader_of(Deleted))
