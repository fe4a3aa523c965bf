"""Files: training data and requests that were uploaded, and the results of jobs and batches."""

from __future__ import annotations

from pathlib import Path

from graftwork.clients.endpoints.parts import path_of, reader_of, without_none
from graftwork.clients.http.calls import SLOW_TIMEOUT, Call, CallRequest, MultipartUpload, ProgressCallback
from graftwork.clients.types.files import Deleted, UploadedFile
from graftwork.clients.types.pages import Page


def upload(
    path: str | Path, *, purpose: str = "fine-tune", progress: ProgressCallback | None = None
) -> Call[UploadedFile]:
    """Upload a file, streamed from disk.

    Args:
        path: the file.
        purpose: fine-tune for training data, batch for the requests of a batch.
        progress: called with the bytes sent so far and the total.

    Raises:
        LocalFileError: if the file cannot be read.
    """
    upload = MultipartUpload(files=(Path(path),), fields={"purpose": purpose}, progress=progress, field="file")
    return Call(
        request=CallRequest(method="POST", path=path_of("files"), upload=upload, read_timeout=SLOW_TIMEOUT),
        read=reader_of(UploadedFile),
    )


def list(*, purpose: str | None = None, after: str | None = None, limit: int | None = None) -> Call[Page[UploadedFile]]:
    """List files, newest first.

    Args:
        purpose: fine-tune, fine-tune-results, batch or batch_output.
        after: the last id of the previous page.
        limit: the most files of the page.
    """
    query = without_none(purpose=purpose, after=after, limit=limit)
    return Call(
        request=CallRequest(method="GET", path=path_of("files"), query=query), read=reader_of(Page[UploadedFile])
    )


def get(id: str) -> Call[UploadedFile]:
    """Get the metadata of a file.

    Raises:
        NotFoundError: if there is no such file.
    """
    return Call(request=CallRequest(method="GET", path=path_of("files", id)), read=reader_of(UploadedFile))


def content(id: str) -> Call[str]:
    """Get the content of a file as text."""
    request = CallRequest(method="GET", path=path_of("files", id, "content"), read_timeout=SLOW_TIMEOUT)
    return Call(request=request, read=lambda reply: reply.text)


def delete(id: str) -> Call[Deleted]:
    """Delete a file.

    Raises:
        ConflictError: if a job or batch needs it.
    """
    return Call(request=CallRequest(method="DELETE", path=path_of("files", id)), read=reader_of(Deleted))
