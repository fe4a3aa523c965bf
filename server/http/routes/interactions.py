"""``/v1/interactions``: the log of requests and answers, read, exported and erased by operators."""

from __future__ import annotations

import logging
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import Field
from starlette.responses import JSONResponse, Response, StreamingResponse

from graftwork.adapters.access.keys import Role
from graftwork.adapters.access.principal import Principal
from graftwork.adapters.feedback.feedback import FeedbackFilter
from graftwork.adapters.feedback.interactions import Completion, Interaction, InteractionFilter, InteractionStatus
from graftwork.server.bodies import Label, Text
from graftwork.server.http.lists import Moment, Parameters, answered_by, in_thread, json_lines, page_body
from graftwork.server.http.openapi import stream_of
from graftwork.server.http.routes import feedback
from graftwork.server.http.schemas.interactions import ErasureObject, InteractionObject, LoggedCompletionObject
from graftwork.server.http.schemas.lists import ListObject
from graftwork.server.http.services import Services

log = logging.getLogger(__name__)


class InteractionParameters(Parameters):
    """The filter of a list of interactions."""

    adapter: Label | None = None
    experiment: Label | None = None
    arm: Label | None = None
    status: InteractionStatus | None = None
    user: Label | None = None
    key_id: Label | None = None
    episode: Label | None = None
    since: Moment | None = None
    until: Moment | None = None

    def filter(self, services: Services) -> InteractionFilter:
        """The filter with ``adapter`` resolved.

        Raises:
            InvalidRequest: Nothing has the name ``adapter``.
        """
        given = {name: getattr(self, name) for name in InteractionFilter.__dataclass_fields__}
        return InteractionFilter(**{**given, "adapter": answered_by(services, self.adapter)})


class InteractionPageParameters(InteractionParameters):
    """The filter and page of a list of interactions."""

    after: Text | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20


class ErasureParameters(Parameters):
    """The user whose data are erased."""

    user: Annotated[Label, Field(min_length=1)]


def add(routes: APIRouter, services: Services) -> None:
    """Add the routes of interactions."""
    records, base_id = services.records, services.base.id
    operator = Depends(services.authenticator.require(Role.OPERATOR))
    eraser = Depends(services.authenticator.require(Role.OPERATOR, unscoped=True))

    @routes.get("/v1/interactions", dependencies=[operator], response_model=ListObject[InteractionObject])
    async def list_interactions(page: Annotated[InteractionPageParameters, Query()]) -> Response:
        found = await in_thread(
            records.interactions.find, await in_thread(page.filter, services), after=page.after, limit=page.limit
        )
        return JSONResponse(page_body(found, show))

    @routes.get(
        "/v1/interactions/export",
        dependencies=[operator],
        response_class=StreamingResponse,
        response_model=InteractionObject,
        openapi_extra=stream_of(InteractionObject, "application/jsonl"),
    )
    async def export_interactions(which: Annotated[InteractionParameters, Query()]) -> Response:
        return json_lines(records.interactions.each(await in_thread(which.filter, services)), show)

    @routes.get("/v1/interactions/{interaction_id}", dependencies=[operator], response_model=InteractionObject)
    async def get_interaction(interaction_id: str) -> Response:
        await in_thread(records.log.wait_until_durable, interaction_id)
        found = await in_thread(records.interactions.get, interaction_id)
        rows = await in_thread(records.feedback.find, FeedbackFilter(interaction_id=interaction_id), limit=100)
        return JSONResponse({**show(found), "feedback": [feedback.show(row, base_id) for row in reversed(rows)]})

    @routes.delete("/v1/interactions", response_model=ErasureObject)
    async def erase(whose: Annotated[ErasureParameters, Query()], who: Principal = eraser) -> Response:
        # Rows that still wait, in memory or on this disk, must not be written after the erasure.
        await in_thread(records.log.flush)
        if records.delivery is not None:
            await in_thread(records.delivery.deliver_all)
        erased = await in_thread(records.erasure.erase_user, whose.user)
        log.info(
            "%s erased a user: %d interactions, the words of %d pieces of feedback",
            who.name,
            erased.num_interactions,
            erased.num_feedback,
        )
        return JSONResponse(
            {
                "object": "interactions.erasure",
                "interactions": erased.num_interactions,
                "feedback": erased.num_feedback,
                "learned_from": erased.learned_from,
                "continued": erased.continued,
            }
        )


def show(row: Interaction) -> InteractionObject:
    """The JSON of an interaction."""
    shown: InteractionObject = {
        "object": "interaction",
        "id": row.id,
        "created_at": int(row.created_at.timestamp()),
        "model": row.model,
        "base": row.base,
        "adapter": row.adapter or row.base,
        "experiment": row.experiment,
        "arm": row.arm,
        "probability": row.probability,
        "unit": row.unit,
        "episode": row.episode,
        "status": row.status,
        "error": row.error,
        "messages": row.prompt.get("messages"),
        "prompt": row.prompt.get("prompt"),
        "sampling": row.sampling,
        "completions": [*map(_show_completion, row.completions)],
        "usage": {
            "prompt_tokens": row.prompt_tokens,
            "completion_tokens": row.completion_tokens,
            "total_tokens": row.prompt_tokens + row.completion_tokens,
        },
        "timings": {"queue_ms": row.queue_ms, "first_token_ms": row.first_token_ms, "total_ms": row.total_ms},
        "user": row.user,
        "metadata": row.metadata,
        "key_id": row.key_id,
    }
    if "tools" in row.prompt:
        shown["tools"] = row.prompt["tools"]
    if "replaced" in row.prompt:
        shown["replaced"] = row.prompt["replaced"]
    return shown


def _show_completion(completion: Completion) -> LoggedCompletionObject:
    shown: LoggedCompletionObject = {
        "index": completion.index,
        "text": completion.text,
        "finish_reason": completion.finish_reason,
    }
    if completion.tool_calls:
        shown["tool_calls"] = [
            {"id": call["id"], "type": "function", "function": call["function"]} for call in completion.tool_calls
        ]
    return shown
