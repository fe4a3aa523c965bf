"""Training, as jobs of the server."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from graftwork.clients.endpoints.parts import path_of, reader_of, without_none
from graftwork.clients.http.calls import Call, CallRequest
from graftwork.clients.types.jobs import Job, JobCheckpoint, JobEvent
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
    """Train a version of the adapter ``name``, on top of the base or of the version that ``model`` names.

    ``training_file`` is an uploaded file's id, or ``feedback``: what was said of the adapter's answers. ``method``:
    auto, supervised, dpo or another one of docs/learning.md. Sent again with the same ``idempotency_key`` it is one
    job; without one, the call makes one up, so that it may try again by itself when a connection breaks.
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
    """A page of jobs, newest first; ``after`` is the last one's id of the page before."""
    query = without_none(adapter=adapter, after=after, limit=limit)
    return Call(
        request=CallRequest(method="GET", path=path_of("fine_tuning", "jobs"), query=query), read=reader_of(Page[Job])
    )


def get(id: str) -> Call[Job]:
    """One job, as it stands."""
    return Call(request=CallRequest(method="GET", path=path_of("fine_tuning", "jobs", id)), read=reader_of(Job))


def cancel(id: str) -> Call[Job]:
    """End a job now; nothing of it is published."""
    return Call(
        request=CallRequest(method="POST", path=path_of("fine_tuning", "jobs", id, "cancel")), read=reader_of(Job)
    )


def events(id: str, *, after: str | None = None, limit: int | None = None) -> Call[Page[JobEvent]]:
    """A page of what happened to a job, newest first; ``after`` is the last event's id of the page before."""
    path, query = path_of("fine_tuning", "jobs", id, "events"), without_none(after=after, limit=limit)
    return Call(request=CallRequest(method="GET", path=path, query=query), read=reader_of(Page[JobEvent]))


def checkpoints(id: str, *, after: str | None = None, limit: int | None = None) -> Call[Page[JobCheckpoint]]:
    """A page of the steps after which a run was saved, newest first."""
    path, query = path_of("fine_tuning", "jobs", id, "checkpoints"), without_none(after=after, limit=limit)
    return Call(request=CallRequest(method="GET", path=path, query=query), read=reader_of(Page[JobCheckpoint]))
