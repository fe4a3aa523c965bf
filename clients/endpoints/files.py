"""Uploaded rows to learn from, and what jobs measured."""

from __future__ import annotations

from pathlib import Path

from graftwork.clients.endpoints.parts import given, one, path_of
from graftwork.clients.http.calls import SLOW, Call, Progress, Request, Upload
from graftwork.clients.types.files import Deleted, File
from graftwork.clients.types.pages import Page


def upload(path: str | Path, *, progress: Progress | None = None) -> Call[File]:
    """Upload rows to learn from, streamed from disk; ``progress`` is told the bytes sent and the bytes in all."""
    upload = Upload(files=(Path(path),), fields={"purpose": "fine-tune"}, progress=progress, field="file")
    return Call(request=Request(method="POST", path=path_of("files"), upload=upload, read_timeout=SLOW), read=one(File))


def list(*, purpose: str | None = None, after: str | None = None, limit: int | None = None) -> Call[Page[File]]:
    """A page of files, newest first; ``purpose`` is fine-tune or fine-tune-results."""
    query = given(purpose=purpose, after=after, limit=limit)
    return Call(request=Request(method="GET", path=path_of("files"), query=query), read=one(Page[File]))


def get(id: str) -> Call[File]:
    """One file."""
    return Call(request=Request(method="GET", path=path_of("files", id)), read=one(File))


def content(id: str) -> Call[str]:
    """What a file holds, as text."""
    request = Request(method="GET", path=path_of("files", id, "content"), read_timeout=SLOW)
    return Call(request=request, read=lambda reply: reply.text)


def delete(id: str) -> Call[Deleted]:
    """Delete a file; raises ``ConflictError`` while a job needs it."""
    return Call(request=Request(method="DELETE", path=path_of("files", id)), read=one(Deleted))
