"""``POST /v1/chat/completions`` and ``POST /v1/completions``, and the tokens of their prompts."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response, StreamingResponse

from graftwork.adapters.access.keys import Role
from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.feedback.ids import IdKind
from graftwork.server.bodies import MAX_LABEL_CHARS, parse
from graftwork.server.generation.service import GenerationService
from graftwork.server.generation.tokenization import Tokenization
from graftwork.server.http.auth import Authenticator
from graftwork.server.http.leaving import unless_client_leaves
from graftwork.server.http.openapi import json_body, stream_of
from graftwork.server.http.schemas.generation import (
    ChatCompletionChunkObject,
    ChatCompletionObject,
    CompletionChunkObject,
    CompletionObject,
    DetokenizedObject,
    TokenizedObject,
)
from graftwork.server.openai.requests.chat import ChatCompletionRequest
from graftwork.server.openai.requests.completions import CompletionRequest
from graftwork.server.openai.requests.generation import GenerationRequest
from graftwork.server.openai.requests.tokenization import DetokenizeRequest, TokenizeRequest

#: Names a conversation or visitor, for experiments.
SESSION_HEADER = "x-graftwork-session"


def add(
    routes: APIRouter, authenticator: Authenticator, service: GenerationService, tokenization: Tokenization
) -> None:
    """Add the routes of generation and tokenization."""
    reader = Depends(authenticator.require(Role.APP))

    @routes.post(
        "/v1/chat/completions",
        dependencies=[reader],
        response_model=ChatCompletionObject,
        openapi_extra={**json_body(ChatCompletionRequest), **stream_of(ChatCompletionChunkObject)},
    )
    async def chat(request: Request) -> Response:
        return await _respond(service, request, "chatcmpl", parse(ChatCompletionRequest, await request.body()))

    @routes.post(
        "/v1/completions",
        dependencies=[reader],
        response_model=CompletionObject,
        openapi_extra={**json_body(CompletionRequest), **stream_of(CompletionChunkObject)},
    )
    async def complete(request: Request) -> Response:
        return await _respond(service, request, "cmpl", parse(CompletionRequest, await request.body()))

    # vLLM's addresses, which have no /v1.
    @routes.post(
        "/tokenize",
        dependencies=[reader],
        response_model=TokenizedObject,
        openapi_extra=json_body(TokenizeRequest),
    )
    async def tokenize(request: Request) -> Response:
        tokenized = await tokenization.tokenize(parse(TokenizeRequest, await request.body()))
        return Response(tokenized, media_type="application/json")

    @routes.post(
        "/detokenize",
        dependencies=[reader],
        response_model=DetokenizedObject,
        openapi_extra=json_body(DetokenizeRequest),
    )
    async def detokenize(request: Request) -> Response:
        detokenized = await tokenization.detokenize(parse(DetokenizeRequest, await request.body()))
        return Response(detokenized, media_type="application/json")


async def _respond(service: GenerationService, request: Request, kind: IdKind, body: GenerationRequest) -> Response:
    admission = service.admit(
        kind,
        body,
        session=_session(request, body),
        key_id=request.state.principal.key_id,
        num_bytes=len(await request.body()),
    )
    prepared = await service.prepare(admission)
    route = admission.route
    request.state.adapter = route.adapter or route.name
    active = service.start(admission, *prepared)
    headers = {f"x-graftwork-{name}": value for name, value in route.labels().items()}
    if body.stream:
        return StreamingResponse(
            service.events(active), media_type="text/event-stream", headers={**headers, "cache-control": "no-cache"}
        )
    await unless_client_leaves(request, service.collect(active))
    return Response(active.answer.body(), media_type="application/json", headers=headers)


def _session(request: Request, body: GenerationRequest) -> str | None:
    """The session of a request, for experiments: a conversation or a visitor where the body names no user."""
    named = (body.metadata or {}).get("session")
    if named:
        return named
    session = request.headers.get(SESSION_HEADER)
    if session is not None and len(session) > MAX_LABEL_CHARS:
        raise InvalidRequest(
            f"the header {SESSION_HEADER} has {len(session)} characters: shorten it to {MAX_LABEL_CHARS} at most",
            param=SESSION_HEADER,
        )
    return session or None
