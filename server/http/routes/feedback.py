"""``/v1/feedback``: feedback on answers. Any key may send it; reading takes an operator's.

A response means that the feedback is durable: while the database is away on this server's disk, and then without an
id. If the answer's own row is not yet written by this process, the response
waits for it: so a correction always has the prompt that it is about.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field
from starlette.responses import JSONResponse, Response, StreamingResponse

from graftwork.adapters import names
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
from graftwork.server.http.services import Records, Services

IDEMPOTENCY_HEADER = "idempotency-key"


class NewFeedback(StrictModel):
    """The body of feedback: on one choice of an answer, or on an episode."""

    interaction_id: Text | None = None
    episode: Label | None = None
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
    episode: Label | None = None
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
    anybody = Depends(services.authenticator.require(Role.APP, changes=False))
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
        interaction_id, episode = await in_thread(_judged, records, body, who.key_id)
        submitted = SubmittedFeedback(
            interaction_id=interaction_id,
            choice=body.choice or 0,
            thumb=body.thumb,
            score=body.score,
            correction=body.correction,
            preferred_over=body.preferred_over,
            preferred_over_choice=body.preferred_over_choice,
            comment=body.comment,
            metadata=None if body.metadata is None else dict(body.metadata),
            user=body.user or None,
            episode=episode,
        )
        key = _idempotency_key(request, body)
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


def _judged(records: Records, body: NewFeedback, key_id: str) -> tuple[str, str | None]:
    """The answer that feedback is about, whose row is written by then, and the episode whose last answer that is.

    Raises:
        InvalidRequest: Neither is named or both are, or the key has no such episode.
    """
    if (body.interaction_id is None) == (body.episode is None):
        raise InvalidRequest(
            "feedback is on an answer or on an episode: send interaction_id or episode, one of the two",
            param="interaction_id",
            code="missing_required_parameter" if body.episode is None else None,
        )
    if body.interaction_id is not None:
        records.log.wait_until_durable(body.interaction_id)
        return body.interaction_id, None
    name = body.episode or ""
    for field in ("choice", "preferred_over"):
        if getattr(body, field) is not None:
            raise InvalidRequest(f"{field} is about one answer: name that in interaction_id", param=field)
    records.log.flush(seconds=5.0)
    episode = records.ids.episode(name, key_id=key_id)
    last = records.interactions.last_of_episode(episode)
    if last is None:
        raise InvalidRequest(
            f"this key has no answers of an episode {names.quoted(name)} in the log: name the episode in the requests, "
            "in the header x-graftwork-episode or as episode in their metadata; what was sent with store false is not "
            "logged",
            param="episode",
            code="unknown_episode",
        )
    return last, episode


def show(row: Feedback, base_id: str) -> FeedbackObject:
    """The JSON of feedback."""
    return {
        "object": "feedback",
        "id": row.id or None,
        "at": row.at.timestamp(),
        "interaction_id": row.interaction_id,
        "adapter": row.adapter or base_id,
        "experiment": row.experiment,
        "arm": row.arm,
        "probability": row.probability,
        "unit": row.unit,
        "episode": row.episode,
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
