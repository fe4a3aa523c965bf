"""``/v1/batches``: OpenAI's batches. An app's key makes them of its own files and sees its own, an operator's all.

A response means that the batch is durable. It is checked and carried on in the background (``generation.batches``).
"""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field
from starlette.responses import JSONResponse, Response

from graftwork.adapters.access.keys import Role
from graftwork.adapters.access.principal import Principal
from graftwork.adapters.batches.batch import Batch, BatchError, NewBatch
from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.names import quoted
from graftwork.server.bodies import Label, Metadata, StrictModel, only_off, parse
from graftwork.server.generation.batches.endpoints import ENDPOINTS
from graftwork.server.http.lists import Parameters, in_thread
from graftwork.server.http.openapi import json_body
from graftwork.server.http.schemas.batches import BatchErrorObject, BatchListObject, BatchObject
from graftwork.server.http.services import Services

log = logging.getLogger(__name__)

IDEMPOTENCY_HEADER: Final = "idempotency-key"


class CreatedBatch(StrictModel):
    """The body that creates a batch."""

    input_file_id: Annotated[Label, Field(min_length=1)]
    endpoint: Annotated[Label, Field(min_length=1)]
    completion_window: Literal["24h"]
    metadata: Metadata = None
    output_expires_after: Annotated[Any, only_off(instead="files stay until they are deleted; leave it out")] = None


class BatchesParameters(Parameters):
    """The page of a list of batches."""

    after: Label | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20


def add(routes: APIRouter, services: Services) -> None:
    """Add the routes of batches."""
    batches = services.batches
    caller = Depends(services.authenticator.require(Role.APP))

    @routes.post("/v1/batches", response_model=BatchObject, openapi_extra=json_body(CreatedBatch))
    async def create_batch(request: Request, who: Principal = caller) -> Response:
        new = _checked(parse(CreatedBatch, await request.body()))
        batch, is_new = await in_thread(
            batches.create, new, who, idempotency_key=request.headers.get(IDEMPOTENCY_HEADER) or None
        )
        if is_new:
            log.info("%s created %s of %s", who.name, batch.id, batch.input_file)
        return JSONResponse(show(batch))

    @routes.get("/v1/batches", response_model=BatchListObject)
    async def list_batches(page: Annotated[BatchesParameters, Query()], who: Principal = caller) -> Response:
        found = await in_thread(batches.find, after=page.after, limit=page.limit, owner=who.owner)
        body: BatchListObject = {
            "object": "list",
            "data": [show(batch) for batch in found],
            "first_id": found[0].id if found else None,
            "last_id": found[-1].id if found else None,
            "has_more": found.has_more,
        }
        return JSONResponse(body)

    @routes.get("/v1/batches/{batch_id}", response_model=BatchObject)
    async def get_batch(batch_id: str, who: Principal = caller) -> Response:
        return JSONResponse(show(await in_thread(batches.get, batch_id, owner=who.owner)))

    @routes.post("/v1/batches/{batch_id}/cancel", response_model=BatchObject)
    async def cancel_batch(batch_id: str, who: Principal = caller) -> Response:
        batch = await in_thread(batches.cancel, batch_id, owner=who.owner)
        log.info("%s cancelled %s", who.name, batch.id)
        return JSONResponse(show(batch))


def _checked(body: CreatedBatch) -> NewBatch:
    if body.endpoint not in ENDPOINTS:
        raise InvalidRequest(
            f"endpoint {quoted(body.endpoint)} takes no batches: choose {', '.join(ENDPOINTS)}", param="endpoint"
        )
    return NewBatch(
        endpoint=body.endpoint,
        input_file=body.input_file_id,
        completion_window=body.completion_window,
        metadata=dict(body.metadata or {}),
    )


def show(batch: Batch) -> BatchObject:
    """OpenAI's JSON of a batch, and under ``graftwork`` what it has no field for."""
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": {"object": "list", "data": [_show_error(error) for error in batch.errors]} if batch.errors else None,
        "input_file_id": batch.input_file,
        "completion_window": batch.completion_window,
        "status": batch.status,
        "output_file_id": batch.output_file,
        "error_file_id": batch.error_file,
        "created_at": int(batch.created_at.timestamp()),
        "in_progress_at": _seconds(batch.in_progress_at),
        "expires_at": int(batch.expires_at.timestamp()),
        "finalizing_at": _seconds(batch.finalizing_at),
        "completed_at": _seconds(batch.completed_at),
        "failed_at": _seconds(batch.failed_at),
        "expired_at": _seconds(batch.expired_at),
        "cancelling_at": _seconds(batch.cancelling_at),
        "cancelled_at": _seconds(batch.cancelled_at),
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "metadata": dict(batch.metadata),
        "graftwork": {"created_by": batch.created_by, "waiting": batch.waiting},
    }


def _show_error(error: BatchError) -> BatchErrorObject:
    return {"code": error.code, "message": error.message, "line": error.line, "param": error.param}


def _seconds(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())
