"""Batches: many requests in one file, answered in the background."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from graftwork.clients.endpoints.parts import path_of, read_line, reader_of, without_none
from graftwork.clients.http.calls import SLOW_TIMEOUT, Call, CallRequest, LinesCall
from graftwork.clients.types.batches import Batch
from graftwork.clients.types.pages import Page


def create(
    input_file: str,
    *,
    endpoint: str = "/v1/chat/completions",
    metadata: Mapping[str, str] | None = None,
    idempotency_key: str | None = None,
) -> Call[Batch]:
    """Create a batch, which is answered within 24 hours.

    Args:
        input_file: the id of a file of requests, uploaded with the purpose batch.
        endpoint: the path that all its requests are for.
        metadata: metadata of the batch.
        idempotency_key: requests with the same key create one batch. Random by default, so that the client can retry.

    Raises:
        BadRequestError: if there is no such file, or the endpoint takes no batches.
    """
    request = CallRequest(
        method="POST",
        path=path_of("batches"),
        json={
            "input_file_id": input_file,
            "endpoint": endpoint,
            "completion_window": "24h",
            **without_none(metadata=metadata and dict(metadata)),
        },
        headers={"idempotency-key": idempotency_key or uuid.uuid4().hex},
        idempotent=True,
    )
    return Call(request=request, read=reader_of(Batch))


def list(*, after: str | None = None, limit: int | None = None) -> Call[Page[Batch]]:
    """List batches, newest first; ``after`` is the last id of the previous page."""
    query = without_none(after=after, limit=limit)
    return Call(request=CallRequest(method="GET", path=path_of("batches"), query=query), read=reader_of(Page[Batch]))


def get(id: str) -> Call[Batch]:
    """Get a batch, with how many of its requests are answered.

    Raises:
        NotFoundError: if there is no such batch, or it is another key's.
    """
    return Call(request=CallRequest(method="GET", path=path_of("batches", id)), read=reader_of(Batch))


def cancel(id: str) -> Call[Batch]:
    """Cancel a batch. What was answered is kept in its output file.

    Raises:
        ConflictError: if it has ended.
    """
    return Call(request=CallRequest(method="POST", path=path_of("batches", id, "cancel")), read=reader_of(Batch))


def results(file_id: str) -> LinesCall[Mapping[str, Any]]:
    """Iterate over the lines of a batch's output or error file: id, custom_id, response and error of each request.

    Args:
        file_id: ``output_file_id`` or ``error_file_id`` of a batch that has ended.
    """
    request = CallRequest(method="GET", path=path_of("files", file_id, "content"), read_timeout=SLOW_TIMEOUT)
    return LinesCall(request=request, read=read_line)
