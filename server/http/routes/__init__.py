"""The routes, one module per noun, each with a function ``add(routes, services)``.

Reading takes any key, and so do batches and files of one's own; changing adapters and reading users' texts take an
operator's, keys an admin's; health, readiness and the page itself take none. Blocking calls run in threads.
``schemas`` describes the responses, ``edge`` words the errors. ``generation`` is added by ``GraftServer``, since it
needs the engine.
"""

from __future__ import annotations

from fastapi import APIRouter, FastAPI
from starlette.responses import JSONResponse

from graftwork.server.http.openapi import DocumentedRoute, error_answer
from graftwork.server.http.page import routes as page
from graftwork.server.http.routes import (
    adapters,
    audit,
    batches,
    experiments,
    feedback,
    files,
    interactions,
    keys,
    learning_policies,
    log_policies,
    models,
    rounds,
    service,
    webhooks,
)
from graftwork.server.http.routes.fine_tuning import graders, jobs
from graftwork.server.http.services import Services

NOUNS = (
    page,
    service,
    models,
    adapters,
    keys,
    audit,
    feedback,
    interactions,
    log_policies,
    experiments,
    files,
    batches,
    jobs,
    graders,
    learning_policies,
    rounds,
    webhooks,
)


def router(services: Services) -> APIRouter:
    """All routes of ``NOUNS``, for ``add_routes``."""
    routes = APIRouter(
        route_class=DocumentedRoute,
        default_response_class=JSONResponse,
        generate_unique_id_function=lambda route: route.name,
        responses={"default": error_answer()},
    )
    for noun in NOUNS:
        noun.add(routes, services)
    return routes


def add_routes(app: FastAPI, routes: APIRouter) -> None:
    """Add routes to an app as its own. Those that it includes are built a second time, while the first user waits."""
    app.router.routes.extend(routes.routes)
