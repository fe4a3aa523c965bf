"""The OpenAPI document of all routes, and a check that responses conform to it."""

from __future__ import annotations

import functools
import json
from typing import Any
from unittest.mock import MagicMock

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import TypeAdapter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from graftwork.server.http.auth import Authenticator
from graftwork.server.http.openapi import openapi_schema
from graftwork.server.http.routes import add_routes, generation, router
from graftwork.server.http.schemas.generation.chat import ChatCompletionChunkObject, CompletionChunkObject
from graftwork.server.http.schemas.generation.messages import AnthropicErrorObject, MessageEventObject
from graftwork.server.http.schemas.generation.responses import ResponseEventObject
from graftwork.server.http.schemas.lists import ErrorObject

CHUNKS = {
    "/v1/chat/completions": ChatCompletionChunkObject,
    "/v1/completions": CompletionChunkObject,
    "/v1/responses": ResponseEventObject,
    "/v1/messages": MessageEventObject,
}


@functools.cache
def document() -> dict[str, Any]:
    """The server's document; routes are only looked at, so nothing stands behind them."""
    services = MagicMock()
    services.authenticator = Authenticator(MagicMock(), open_to_loopback=True)
    routes = router(services)
    generation.add(routes, services.authenticator, MagicMock(), MagicMock(), MagicMock(), services.records)
    app = FastAPI(openapi_url=None)
    add_routes(app, routes)
    return openapi_schema(app)


class DocumentedAnswers:
    """ASGI middleware that fails when an answer is not what the document says of its route."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start: Message = {}
        body = bytearray()

        async def noted_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            body.extend(message.get("body", b""))
            await send(message)

        await self.app(scope, receive, noted_send)
        route = scope.get("route")
        if start and isinstance(route, APIRoute):
            check_answer(route, start["status"], dict(start["headers"])[b"content-type"].decode(), bytes(body))


def check_answer(route: APIRoute, status: int, content_type: str, body: bytes) -> None:
    """Raises AssertionError, or pydantic's error, for a body that is not as documented."""
    if status >= 400 and status != 503:
        check_object(AnthropicErrorObject if route.path.startswith("/v1/messages") else ErrorObject, body)
    elif content_type == "application/json" and status < 400:
        check_object(route.response_model, body)
    elif content_type == "application/jsonl":
        for line in body.splitlines():
            check_object(route.response_model, line)
    elif content_type.startswith("text/event-stream"):
        for event in body.split(b"\n\n"):
            if event and event != b"data: [DONE]" and not event.startswith(b'data: {"error"'):
                check_object(CHUNKS[route.path], event.partition(b"data: ")[2])


def check_object(kind: Any, body: bytes) -> None:
    adapter = _adapter(kind)
    read = adapter.validate_json(body, strict=True)
    assert adapter.dump_python(read, mode="json") == json.loads(body), "no field is missing in the document"


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
