"""``POST /v1/chat/completions`` and ``POST /v1/completions``, and how routes respond that become chats."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from graftwork.adapters.access.keys import Role
from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.experiments.routing import Route
from graftwork.adapters.feedback.ids import IdKind
from graftwork.server.bodies import MAX_LABEL_CHARS, parse
from graftwork.server.generation.admission import MakeAnswer
from graftwork.server.generation.service import ActiveGeneration, GenerationService
from graftwork.server.http.auth import Authenticator
from graftwork.server.http.leaving import unless_client_leaves
from graftwork.server.http.openapi import json_body, stream_of
from graftwork.server.http.schemas.generation.chat import (
    ChatCompletionChunkObject,
    ChatCompletionObject,
    CompletionChunkObject,
    CompletionObject,
)
from graftwork.server.openai.answers.chat import ChatAnswer
from graftwork.server.openai.requests.chat import ChatCompletionRequest
from graftwork.server.openai.requests.completions import CompletionRequest
from graftwork.server.openai.requests.generation import GenerationRequest

#: Names a conversation or visitor, for experiments.
SESSION_HEADER = "x-graftwork-session"
#: Names several answers that are judged as one.
EPISODE_HEADER = "x-graftwork-episode"
#: Says that the user is to be asked for feedback on the answer.
ASK_FEEDBACK_HEADER = "x-graftwork-ask-feedback"


def add(routes: APIRouter, authenticator: Authenticator, service: GenerationService) -> None:
    """Add the routes of chats and completions."""
    reader = Depends(authenticator.require(Role.APP, changes=False))

    @routes.post(
        "/v1/chat/completions",
        dependencies=[reader],
        response_model=ChatCompletionObject,
        openapi_extra={**json_body(ChatCompletionRequest), **stream_of(ChatCompletionChunkObject)},
    )
    async def chat(request: Request) -> Response:
        return await respond(service, request, "chatcmpl", parse(ChatCompletionRequest, await request.body()))

    @routes.post(
        "/v1/completions",
        dependencies=[reader],
        response_model=CompletionObject,
        openapi_extra={**json_body(CompletionRequest), **stream_of(CompletionChunkObject)},
    )
    async def complete(request: Request) -> Response:
        return await respond(service, request, "cmpl", parse(CompletionRequest, await request.body()))


async def respond(
    service: GenerationService,
    request: Request,
    kind: IdKind,
    body: GenerationRequest,
    make_answer: MakeAnswer = ChatAnswer,
) -> Response:
    """Generate the answer to a request, as a stream or whole.

    Args:
        service: Generates it.
        request: Whose body was read.
        kind: Of the answer's id.
        body: The parsed body, or the chat that it became.
        make_answer: Makes the answer to a chat, in the shape of the route.
    """
    key_id = request.state.principal.key_id
    service.limiter.check(key_id)
    admission = service.admit(
        kind,
        body,
        session=body.session or _label(request, SESSION_HEADER),
        key_id=key_id,
        num_bytes=len(await request.body()),
        make_answer=make_answer,
        episode=body.episode or _label(request, EPISODE_HEADER),
    )
    prepared = await service.prepare(admission)
    headers = note_route(request, admission.route, asked=admission.asked)
    active = service.start(admission, *prepared)
    if body.stream:
        headers |= service.limiter.standing(key_id).headers()
        return EventStream(service, active, headers={**headers, "cache-control": "no-cache"})
    await unless_client_leaves(request, service.collect(active))
    headers |= service.limiter.standing(key_id).headers()
    return Response(active.answer.body(), media_type="application/json", headers=headers)


class EventStream(StreamingResponse):
    """The events of an answer. However the response ends, the answer ends with it, also if it was never begun."""

    media_type = "text/event-stream"

    def __init__(self, service: GenerationService, active: ActiveGeneration, headers: Mapping[str, str]) -> None:
        super().__init__(service.events(active), headers=headers)
        self._leave = partial(service.leave, active)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()


def note_route(request: Request, route: Route, *, asked: bool = False) -> dict[str, str]:
    """Note for the metrics what answers a request, and return the headers that tell the client.

    ``asked`` is whether its user is to be asked for feedback.
    """
    request.state.adapter = route.label
    headers = {f"x-graftwork-{name}": value for name, value in route.labels().items()}
    return headers | {ASK_FEEDBACK_HEADER: "true"} if asked else headers


def _label(request: Request, header: str) -> str | None:
    """What a header names; ``None`` without it.

    Raises:
        InvalidRequest: It is too long.
    """
    label = request.headers.get(header)
    if label is not None and len(label) > MAX_LABEL_CHARS:
        raise InvalidRequest(
            f"the header {header} has {len(label)} characters: shorten it to {MAX_LABEL_CHARS} at most", param=header
        )
    return label or None
