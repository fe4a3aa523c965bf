"""``/v1/models``: everything that ``model`` may name."""

from __future__ import annotations

from anyio import to_thread
from fastapi import APIRouter, Depends, Request
from starlette.responses import JSONResponse, Response

from graftwork.adapters.access.keys import Role
from graftwork.adapters.access.scope import visible
from graftwork.adapters.registry import Version
from graftwork.server.anthropic.models import VERSION_HEADER, with_anthropics_members
from graftwork.server.http.routes.adapters import all_adapters, live_version
from graftwork.server.http.schemas.service import ModelListObject, ModelObject
from graftwork.server.http.services import Services
from graftwork.server.transport.engine import context_length


def add(routes: APIRouter, services: Services) -> None:
    """Add the routes of models."""
    reader = Depends(services.authenticator.require(Role.APP))

    @routes.get("/v1/models", dependencies=[reader], response_model=ModelListObject)
    async def list_models(request: Request) -> Response:
        # Thousands of models take some milliseconds to serialize, for which streams would wait.
        return await to_thread.run_sync(lambda: _shown(request, _all_models(services)))

    @routes.get("/v1/models/", dependencies=[reader], include_in_schema=False, response_model=ModelListObject)
    async def list_models_slash(request: Request) -> Response:
        return await list_models(request)

    # Hub ids have a slash within.
    @routes.get("/v1/models/{model:path}", dependencies=[reader], response_model=ModelObject)
    async def get_model(request: Request, model: str) -> Response:
        if model == services.base.id and visible(None):
            return _shown(request, _base_model(services))
        version = await to_thread.run_sync(services.registry.resolve, model)
        version.check_answers()
        return _shown(request, _model(services, model, version))


def _shown(request: Request, body: ModelObject | ModelListObject) -> Response:
    return JSONResponse(with_anthropics_members(body) if VERSION_HEADER in request.headers else body)


def _all_models(services: Services) -> ModelListObject:
    models = [_base_model(services)] if visible(None) else []
    for adapter in all_adapters(services):
        if live_version(adapter).is_reward_model:
            continue
        models.append(_model(services, adapter.name, live_version(adapter)))
        models += [
            _model(services, f"{adapter.name}@{alias}", adapter.versions[number - 1])
            for alias, number in adapter.aliases.items()
        ]
        models += [_model(services, version.id, version) for version in adapter.versions if not version.retired_at]
    return {"object": "list", "data": models, "has_more": False}


def _base_model(services: Services) -> ModelObject:
    base = services.base
    facts = {"digest": base.digest, "num_parameters": base.num_parameters, **services.engine.base_card}
    return {
        "id": base.id,
        "object": "model",
        "created": services.started_at,
        "owned_by": "graftwork",
        "max_model_len": context_length(services.engine, services.base),
        "graftwork": facts,
    }


def _model(services: Services, model: str, version: Version) -> ModelObject:
    return {
        "id": model,
        "object": "model",
        "created": int(version.created_at.timestamp()),
        "owned_by": "graftwork",
        "max_model_len": context_length(services.engine, services.base),
        "parent": services.base.id,
        "root": version.id,
    }
