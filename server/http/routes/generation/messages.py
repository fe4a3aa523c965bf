"""``POST /v1/messages`` and ``POST /v1/messages/count_tokens``, as Anthropic's clients use them."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from graftwork.adapters.access.keys import Role
from graftwork.server.anthropic.answer import MessageAnswer
from graftwork.server.anthropic.requests import CountTokensRequest, MessagesRequest
from graftwork.server.bodies import parse
from graftwork.server.generation.service import GenerationService
from graftwork.server.generation.tokenization import Tokenization
from graftwork.server.http.auth import Authenticator
from graftwork.server.http.openapi import error_answer, json_body, stream_of
from graftwork.server.http.routes.generation.chat import respond
from graftwork.server.http.schemas.generation.messages import (
    AnthropicErrorObject,
    CountTokensObject,
    MessageEventObject,
    MessageObject,
)

ERRORS = error_answer(AnthropicErrorObject)


def add(
    routes: APIRouter, authenticator: Authenticator, service: GenerationService, tokenization: Tokenization
) -> None:
    """Add the routes of messages."""
    reader = Depends(authenticator.require(Role.APP, changes=False))

    @routes.post(
        "/v1/messages",
        dependencies=[reader],
        response_model=MessageObject,
        responses={"default": ERRORS},
        openapi_extra={**json_body(MessagesRequest), **stream_of(MessageEventObject)},
    )
    async def message(request: Request) -> Response:
        asked = parse(MessagesRequest, await request.body())
        return await respond(service, request, "msg", asked.chat(), MessageAnswer)

    @routes.post(
        "/v1/messages/count_tokens",
        dependencies=[reader],
        response_model=CountTokensObject,
        responses={"default": ERRORS},
        openapi_extra=json_body(CountTokensRequest),
    )
    async def count_tokens(request: Request) -> Response:
        chat = parse(CountTokensRequest, await request.body()).chat()
        return JSONResponse({"input_tokens": await tokenization.count(chat)})
