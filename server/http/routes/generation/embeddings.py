"""``POST /v1/embeddings``."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from graftwork.adapters.access.keys import Role
from graftwork.server.bodies import parse
from graftwork.server.generation.embeddings import EmbeddingService
from graftwork.server.http.auth import Authenticator
from graftwork.server.http.leaving import unless_client_leaves
from graftwork.server.http.openapi import json_body
from graftwork.server.http.routes.generation.chat import note_route
from graftwork.server.http.schemas.generation.embeddings import EmbeddingListObject
from graftwork.server.openai.requests.embeddings import EmbeddingRequest


def add(routes: APIRouter, authenticator: Authenticator, service: EmbeddingService) -> None:
    """Add the route of embeddings."""

    @routes.post(
        "/v1/embeddings",
        dependencies=[Depends(authenticator.require(Role.APP, changes=False))],
        response_model=EmbeddingListObject,
        openapi_extra=json_body(EmbeddingRequest),
    )
    async def embed(request: Request) -> Response:
        body, key_id = parse(EmbeddingRequest, await request.body()), request.state.principal.key_id
        active = await service.start(body, key_id=key_id)
        headers = note_route(request, active.route)
        answer = await unless_client_leaves(request, service.collect(active))
        return Response(
            answer.body(), media_type="application/json", headers=headers | service.limiter.standing(key_id).headers()
        )
