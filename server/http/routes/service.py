"""Liveness, readiness, metrics."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Depends, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from graftwork.adapters.access.keys import Role
from graftwork.adapters.errors import Unavailable
from graftwork.server.http.openapi import openapi_document
from graftwork.server.http.routes.adapters import adapter_states, all_adapters, live_version, tier_of
from graftwork.server.http.schemas.service import HealthObject, ReadinessObject, ServerVersionObject
from graftwork.server.http.services import Services
from graftwork.server.observability import metrics
from graftwork.server.transport.pool import members_of, stats_of
from graftwork.version import __version__

log = logging.getLogger(__name__)

DATABASE_AWAY = (
    "the database cannot be reached: models are served as they were, answers and feedback are kept on this disk until "
    "it is back, and everything else is refused"
)
NOT_DELIVERED = "answers and feedback that were kept on this disk while the database was away are not all in it yet"


def add(routes: APIRouter, services: Services) -> None:
    """Add the routes of the service."""
    scraper = Depends(services.authenticator.require(Role.APP, unscoped=True))
    document: bytes | None = None

    @routes.get("/health", response_model=HealthObject)
    async def health() -> Response:
        return JSONResponse({"status": "ok"})

    @routes.get("/version", response_model=ServerVersionObject)
    async def version() -> Response:
        return JSONResponse({"version": __version__})

    @routes.get(
        "/ready", response_model=ReadinessObject, responses={503: {"model": ReadinessObject, "description": "Not yet"}}
    )
    async def ready() -> Response:
        state = services.engine.state
        if state != "ready":
            return JSONResponse({"status": state, "base": services.base.id}, 503, {"retry-after": "1"})
        if services.database.is_away:
            return JSONResponse({"status": "degraded", "base": services.base.id, "reason": DATABASE_AWAY})
        delivery = services.records.delivery
        if delivery is not None and not await to_thread.run_sync(lambda: delivery.is_done):
            return JSONResponse({"status": "degraded", "base": services.base.id, "reason": NOT_DELIVERED})
        return JSONResponse({"status": state, "base": services.base.id})

    @routes.get("/openapi.json", response_model=dict[str, Any])
    async def openapi(request: Request) -> Response:
        nonlocal document
        if document is None:
            document = await to_thread.run_sync(openapi_document, request.app)
        return Response(document, media_type="application/json")

    @routes.get("/metrics", dependencies=[scraper], response_class=PlainTextResponse)
    async def prometheus() -> Response:
        await _update_gauges(services)
        return Response(await to_thread.run_sync(services.metrics.render), media_type=metrics.CONTENT_TYPE)


async def _update_gauges(services: Services) -> None:
    """Set the engine's and adapters' gauges. Without an engine its counts stay, and no adapter counts as resident."""
    engine = services.engine
    services.metrics.set_database(reachable=not services.database.is_away)
    services.metrics.set_worker(ready=engine.state == "ready", num_restarts=engine.num_restarts)
    engines = members_of(engine)
    stats = await stats_of(engines)
    if stats:
        services.metrics.set_engines(stats)
    if len(engines) > 1:
        for name, one in engines.items():
            services.metrics.set_engine(
                name, ready=one.state == "ready", num_restarts=one.num_restarts, stats=stats.get(name)
            )
    residency = await adapter_states(engine)
    adapters = await to_thread.run_sync(all_adapters, services)
    try:
        learning = await to_thread.run_sync(services.learning.all)
        services.metrics.set_learning(
            {policy.name: (standing.judgements, standing.rounds) for policy, standing in learning}
        )
    except Unavailable as unavailable:
        log.debug("metrics without learning policies: %s", unavailable)
    serving = [version for adapter in adapters for version in adapter.versions if version.retired_at is None]
    tiers: Counter[str] = Counter(tier_of(residency, version) for version in serving)
    services.metrics.set_adapter_tiers(
        tiers, {adapter.name: tier_of(residency, live_version(adapter)) for adapter in adapters}
    )
