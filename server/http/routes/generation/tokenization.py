"""``POST /tokenize`` and ``POST /detokenize``. The addresses are vLLM's, which have no ``/v1``."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from graftwork.adapters.access.keys import Role
from graftwork.server.bodies import parse
from graftwork.server.generation.tokenization import Tokenization
from graftwork.server.http.auth import Authenticator
from graftwork.server.http.openapi import json_body
from graftwork.server.http.schemas.generation.tokenization import DetokenizedObject, TokenizedObject
from graftwork.server.openai.requests.tokenization import DetokenizeRequest, TokenizeRequest


def add(routes: APIRouter, authenticator: Authenticator, tokenization: Tokenization) -> None:
    """Add the routes of tokenization."""
    reader = Depends(authenticator.require(Role.APP, changes=False))

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
