"""Every route that never touches the engine's generation, a file a noun.

Reading takes any key, changing adapters and reading what users wrote an operator's, keys an admin's; health, readiness
and the operator's page take none. What blocks runs beside the event loop. Each file has one ``add(routes, services)``.

Knows nothing of how errors look (``edge``) or where the engine runs (``services``).
"""

from __future__ import annotations

from fastapi import APIRouter

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
    routes = APIRouter()
    for noun in NOUNS:
        noun.add(routes, services)
    return routes
