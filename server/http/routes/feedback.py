"""``/v1/feedback``: feedback on answers. Any key may send it; reading takes an operator's.

A response means that the feedback is durable. If the answer's own row is not yet written by this process, the response
waits for it: so a correction always has the prompt that it is about.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field
from starlette.responses import JSONResponse, Response, StreamingResponse

from graftwork.adapters.access.keys import Role
from graftwork.adapters.access.principal import Principal
from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.feedback.feedback import (
    MAX_CHOICE,
    Feedback,
    FeedbackFilter,
    FeedbackKind,
    SubmittedFeedback,
    Thumb,
)
from graftwork.server.bodies import Label, Metadata, StrictModel, Text, parse
from graftwork.server.http.lists import Moment, Parameters, answered_by, in_thread, json_lines, page_body
from graftwork.server.http.openapi import json_body, stream_of
from graftwork.server.http.schemas.feedback import FeedbackObject
from graftwork.server.http.schemas.lists import ListObject
from graftwork.server.http.services import Services

IDEMPOTENCY_HEADER = "idempotency-key"


class NewFeedback(StrictModel):
    """The body of feedback on one choice of an answer."""

    interaction_id: Text
    choice: Annotated[int, Field(ge=0, le=MAX_CHOICE)] | None = None
    thumb: Thumb | None = None
    score: Annotated[float, Field(ge=0, le=1)] | None = None
    correction: Text | None = None
    preferred_over: Text | None = None
    preferred_over_choice: Annotated[int, Field(ge=0, le=MAX_CHOICE)] | None = None
    comment: Text | None = None
    metadata: Metadata = None
    user: Label | None = None
    idempotency_key: Label | None = None


class FeedbackParameters(Parameters):
    """The filter of a list of feedback."""

    interaction_id: Text | None = None
    adapter: Label | None = None
    experiment: Label | None = None
    arm: Label | None = None
    kind: FeedbackKind | None = None
    user: Label | None = None
    asked: bool | None = None
    since: Moment | None = None
    until: Moment | None = None

    def filter(self, services: Services) -> FeedbackFilter:
        """The filter with ``adapter`` resolved.

        Raises:
            InvalidRequest: Nothing has the name ``adapter``.
        """
        given = {name: getattr(self, name) for name in FeedbackFilter.__dataclass_fields__}
        return FeedbackFilter(**{**given, "adapter": answered_by(services, self.adapter)})


class FeedbackPageParameters(FeedbackParameters):
    """The filter and page of a list of feedback."""

    after: Annotated[int, Field(ge=0)] | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20


def add(routes: APIRouter, services: Services) -> None:
    """Add the routes of feedback."""
    records, base_id = services.records, services.base.id
    anybody = Depends(services.authenticator.require(Role.APP))
    operator = Depends(services.authenticator.require(Role.OPERATOR))

    @routes.post(
        "/v1/feedback",
        status_code=201,
        response_model=FeedbackObject,
        responses={200: {"model": FeedbackObject, "description": "Its idempotency key had said it already"}},
        openapi_extra=json_body(NewFeedback),
    )
    async def send_feedback(request: Request, who: Principal = anybody) -> Response:
        body = parse(NewFeedback, await request.body())
        submitted = SubmittedFeedback(
            interaction_id=body.interaction_id,
            choice=body.choice or 0,
            thumb=body.thumb,
            score=body.score,
            correction=body.correction,
            preferred_over=body.preferred_over,
            preferred_over_choice=body.preferred_over_choice,
            comment=body.comment,
            metadata=None if body.metadata is None else dict(body.metadata),
            user=body.user or None,
        )
        key = _idempotency_key(request, body)
        await in_thread(records.log.wait_until_durable, submitted.interaction_id)
        row, new = await in_thread(records.feedback.add, submitted, key_id=who.key_id, idempotency_key=key)
        if new:
            services.metrics.feedback(adapter=(row.adapter or base_id).partition("@")[0], kinds=row.kinds)
        return JSONResponse(show(row, base_id), 201 if new else 200)

    @routes.get("/v1/feedback", dependencies=[operator], response_model=ListObject[FeedbackObject])
    async def list_feedback(page: Annotated[FeedbackPageParameters, Query()]) -> Response:
        found = await in_thread(
            records.feedback.find, await in_thread(page.filter, services), after=page.after, limit=page.limit
        )
        return JSONResponse(page_body(found, lambda row: show(row, base_id)))

    @routes.get(
        "/v1/feedback/export",
        dependencies=[operator],
        response_class=StreamingResponse,
        response_model=FeedbackObject,
        openapi_extra=stream_of(FeedbackObject, "application/jsonl"),
    )
    async def export_feedback(which: Annotated[FeedbackParameters, Query()]) -> Response:
        return json_lines(
            records.feedback.each(await in_thread(which.filter, services)), lambda row: show(row, base_id)
        )


def show(row: Feedback, base_id: str) -> FeedbackObject:
    """The JSON of feedback."""
    return {
        "object": "feedback",
        "id": row.id,
        "at": row.at.timestamp(),
        "interaction_id": row.interaction_id,
        "adapter": row.adapter or base_id,
        "experiment": row.experiment,
        "arm": row.arm,
        "probability": row.probability,
        "unit": row.unit,
        "asked": row.asked,
        "choice": row.choice,
        "thumb": row.thumb,
        "score": row.score,
        "correction": row.correction,
        "preferred_over": row.preferred_over,
        "preferred_over_choice": row.preferred_over_choice,
        "comment": row.comment,
        "metadata": row.metadata,
        "user": row.user,
        "key_id": row.key_id,
        "erased_at": None if row.erased_at is None else row.erased_at.timestamp(),
    }


def _idempotency_key(request: Request, body: NewFeedback) -> str | None:
    header = request.headers.get(IDEMPOTENCY_HEADER)
    if None not in (header, body.idempotency_key) and header != body.idempotency_key:
        raise InvalidRequest(
            "the header Idempotency-Key and the field idempotency_key differ: send one of the two",
            param="idempotency_key",
        )
    return header or body.idempotency_key or None
