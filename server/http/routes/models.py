"""``/v1/models``: everything that ``model`` may name."""

from __future__ import annotations

from anyio import to_thread
from fastapi import APIRouter, Depends
from starlette.responses import JSONResponse, Response

from graftwork.adapters.access.keys import Role
from graftwork.adapters.registry import Version
from graftwork.server.http.lists import list_body
from graftwork.server.http.routes.adapters import all_adapters, live_version
from graftwork.server.http.schemas.lists import ListObject
from graftwork.server.http.schemas.service import ModelObject
from graftwork.server.http.services import Services
from graftwork.server.transport.engine import context_length


def add(routes: APIRouter, services: Services) -> None:
    """Add the routes of models."""
    reader = Depends(services.authenticator.require(Role.APP))

    @routes.get("/v1/models", dependencies=[reader], response_model=ListObject[ModelObject])
    async def list_models() -> Response:
        # Thousands of models take some milliseconds to serialize, for which streams would wait.
        return await to_thread.run_sync(_all_models, services)

    @routes.get("/v1/models/", dependencies=[reader], include_in_schema=False, response_model=ListObject[ModelObject])
    async def list_models_slash() -> Response:
        return await list_models()

    # Hub ids have a slash within.
    @routes.get("/v1/models/{model:path}", dependencies=[reader], response_model=ModelObject)
    async def get_model(model: str) -> Response:
        if model == services.base.id:
            return JSONResponse(_base_model(services))
        version = await to_thread.run_sync(services.registry.resolve, model)
        return JSONResponse(_model(services, model, version))


def _all_models(services: Services) -> Response:
    models = [_base_model(services)]
    for adapter in all_adapters(services):
        models.append(_model(services, adapter.name, live_version(adapter)))
        models += [
            _model(services, f"{adapter.name}@{alias}", adapter.versions[number - 1])
            for alias, number in adapter.aliases.items()
        ]
        models += [_model(services, version.id, version) for version in adapter.versions if not version.retired_at]
    return JSONResponse(list_body(models))


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
