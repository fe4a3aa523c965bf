"""Training jobs of the server."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from graftwork.clients.endpoints.parts import path_of, reader_of, without_none
from graftwork.clients.http.calls import Call, CallRequest
from graftwork.clients.types.learning.jobs import Job, JobCheckpoint, JobEvent
from graftwork.clients.types.pages import Page


def create(
    *,
    model: str,
    training_file: str,
    name: str | None = None,
    validation_file: str | None = None,
    method: str | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
    seed: int | None = None,
    metadata: Mapping[str, str] | None = None,
    idempotency_key: str | None = None,
) -> Call[Job]:
    """Create a job that trains a version of an adapter.

    Args:
        model: the base, or the version that is trained further.
        training_file: the id of an uploaded file or a stored data set, or ``feedback`` for the feedback on the adapter.
        name: the name of the adapter; that of ``model`` by default.
        validation_file: the id of a file of validation rows.
        method: auto, supervised, dpo or another one of docs/learning.md.
        hyperparameters: hyperparameters by name; see docs/learning.md.
        seed: of the run.
        metadata: metadata of the job.
        idempotency_key: requests with the same key create one job. Random by default, so that the client can retry.

    Raises:
        BadRequestError: if an argument is invalid.
    """
    body = {
        "model": model,
        "training_file": training_file,
        **without_none(
            suffix=name,
            validation_file=validation_file,
            method=None if method is None else {"type": method},
            hyperparameters=hyperparameters and dict(hyperparameters),
            seed=seed,
            metadata=metadata,
        ),
    }
    request = CallRequest(
        method="POST",
        path=path_of("fine_tuning", "jobs"),
        json=body,
        headers={"idempotency-key": idempotency_key or uuid.uuid4().hex},
        idempotent=True,
    )
    return Call(request=request, read=reader_of(Job))


def list(*, adapter: str | None = None, after: str | None = None, limit: int | None = None) -> Call[Page[Job]]:
    """List jobs, newest first; ``after`` is the last id of the previous page."""
    query = without_none(adapter=adapter, after=after, limit=limit)
    return Call(
        request=CallRequest(method="GET", path=path_of("fine_tuning", "jobs"), query=query), read=reader_of(Page[Job])
    )


def get(id: str) -> Call[Job]:
    """Get a job with its progress.

    Raises:
        NotFoundError: if there is no such job.
    """
    return Call(request=CallRequest(method="GET", path=path_of("fine_tuning", "jobs", id)), read=reader_of(Job))


def cancel(id: str) -> Call[Job]:
    """Cancel a job. No version is published.

    Raises:
        ConflictError: if it has ended.
    """
    return Call(
        request=CallRequest(method="POST", path=path_of("fine_tuning", "jobs", id, "cancel")), read=reader_of(Job)
    )


def events(id: str, *, after: str | None = None, limit: int | None = None) -> Call[Page[JobEvent]]:
    """List the events of a job, newest first; ``after`` is the last id of the previous page."""
    path, query = path_of("fine_tuning", "jobs", id, "events"), without_none(after=after, limit=limit)
    return Call(request=CallRequest(method="GET", path=path, query=query), read=reader_of(Page[JobEvent]))


def checkpoints(id: str, *, after: str | None = None, limit: int | None = None) -> Call[Page[JobCheckpoint]]:
    """List the checkpoints of a job, newest first; ``after`` is the last id of the previous page."""
    path, query = path_of("fine_tuning", "jobs", id, "checkpoints"), without_none(after=after, limit=limit)
    return Call(request=CallRequest(method="GET", path=path, query=query), read=reader_of(Page[JobCheckpoint]))
