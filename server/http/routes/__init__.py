"""The routes, one file per noun. ``generation`` is added by whoever has the engine.

Reading takes any key, changing adapters and reading what users wrote an operator's, keys an admin's; health, readiness
and the operator's page take none. What blocks runs beside the event loop. Each file has one ``add(routes, services)``.
What a route answers is described in ``schemas``, its errors are worded in ``edge``.
"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import JSONResponse

from graftwork.server.http.openapi import error_answer
from graftwork.server.http.routes import (
    adapters,
    experiments,
    feedback,
    files,
    interactions,
    jobs,
    keys,
    learning_policies,
    log_policies,
    models,
    service,
)
from graftwork.server.http.services import Services

NOUNS = (
    service,
    models,
    adapters,
    keys,
    feedback,
    interactions,
    log_policies,
    experiments,
    files,
    jobs,
    learning_policies,
)


def router(services: Services) -> APIRouter:
    """All of them, for ``app.include_router``."""
    routes = APIRouter(
        default_response_class=JSONResponse,
        generate_unique_id_function=lambda route: route.name,
        responses={"default": error_answer()},
    )
    for noun in NOUNS:
        noun.add(routes, services)
    return routes
