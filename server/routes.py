"""Every route that never touches the engine's generation: adapters and their aliases, models, keys, health, metrics.

Reading takes any key, changing adapters an operator's, keys an admin's; health, readiness and the operator's page take
none (the page holds no data: it asks with the key one types into it). What blocks runs beside the event loop.

Knows nothing of how a version comes in (``push``), how errors look (``edge``) or where the engine runs (``services``).
"""

from __future__ import annotations

import base64
import hashlib
import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import resources
from typing import Annotated, Any, TypeVar

from anyio import to_thread
from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import HTMLResponse, JSONResponse, Response

from graftwork.adapters.db import Page
from graftwork.adapters.errors import Conflict, InvalidRequest, NotFound, Unavailable
from graftwork.adapters.keys import Key, Role
from graftwork.adapters.names import LIVE
from graftwork.adapters.registry import Adapter, AliasEvent, Version
from graftwork.server import metrics
from graftwork.server.auth import Principal
from graftwork.server.push import Pushes
from graftwork.server.schemas import Text, Wire, parse
from graftwork.server.services import EngineHandle, Residency, Services
from graftwork.server.traffic import Traffic

__all__ = ["EngineHandle", "Residency", "Services", "router"]

log = logging.getLogger(__name__)

T = TypeVar("T")
Json = dict[str, Any]

_VERSION = re.compile(r"[1-9][0-9]{0,17}")


class PromotedVersion(Wire):
    version: Annotated[int, Field(ge=1)]
    reason: Text | None = None


class Rollback(Wire):
    alias: Text = LIVE
    reason: Text | None = None


class NewKey(Wire):
    name: Text
    role: Text


class _Parameters(BaseModel):
    """A misspelt parameter is refused, not ignored."""

    model_config = ConfigDict(extra="forbid")


class PushParameters(_Parameters):
    alias: str | None = None


class PageParameters(_Parameters):
    after: str | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20


class HistoryParameters(_Parameters):
    after: Annotated[int, Field(ge=0)] | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20


def router(services: Services) -> APIRouter:
    """All of them, for ``app.include_router``."""
    routes = APIRouter()
    _add_service_routes(routes, services)
    _add_model_routes(routes, services)
    _add_adapter_routes(routes, services)
    _add_key_routes(routes, services)
    return routes


# ------------------------------------------------------------------------------------------------------- service


def _add_service_routes(routes: APIRouter, services: Services) -> None:
    reader = Depends(services.authenticator.require(Role.APP))
    page, page_headers = _operators_page()

    @routes.get("/")
    async def operators_page() -> Response:
        return HTMLResponse(page, headers=page_headers)

    @routes.get("/health")
    async def health() -> Response:
        return JSONResponse({"status": "ok"})

    @routes.get("/ready")
    async def ready() -> Response:
        state = services.engine.state
        body = {"status": state, "base": services.base.id}
        return JSONResponse(body) if state == "ready" else JSONResponse(body, 503, {"retry-after": "1"})

    @routes.get("/metrics", dependencies=[reader])
    async def prometheus() -> Response:
        await _observe(services)
        return Response(await to_thread.run_sync(services.metrics.render), media_type=metrics.CONTENT_TYPE)


async def _observe(services: Services) -> None:
    """Ask the engine how it is. While there is none, its counts stay as they were and nothing is resident."""
    engine = services.engine
    services.metrics.set_worker(ready=engine.state == "ready", num_restarts=engine.num_restarts)
    try:
        services.metrics.set_engine(await engine.stats())
    except Unavailable as unavailable:
        log.debug("metrics without the engine: %s", unavailable)
    residency = await _residency(engine)
    adapters = await to_thread.run_sync(_all_adapters, services)
    serving = [version for adapter in adapters for version in adapter.versions if version.retired_at is None]
    tiers = Counter(_tier(residency, version) for version in serving)
    services.metrics.set_residency(tiers, {adapter.name: _tier(residency, _live(adapter)) for adapter in adapters})


def _operators_page() -> tuple[str, dict[str, str]]:
    """The page, and headers that let it run its own script and talk to this server, and nothing else."""
    page = resources.files("graftwork.server").joinpath("page.html").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src {_hash_of('script', page)}; style-src {_hash_of('style', page)}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, {"content-security-policy": policy, "cache-control": "no-cache", "x-content-type-options": "nosniff"}


def _hash_of(tag: str, page: str) -> str:
    inside = page.split(f"<{tag}>")[1].split(f"</{tag}>")[0]
    return f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"


# -------------------------------------------------------------------------------------------------------- models


def _add_model_routes(routes: APIRouter, services: Services) -> None:
    reader = Depends(services.authenticator.require(Role.APP))

    @routes.get("/v1/models", dependencies=[reader])
    async def list_models() -> Response:
        adapters = await to_thread.run_sync(_all_adapters, services)
        models = [_base_model(services)]
        for adapter in adapters:
            models.append(_model(services, adapter.name, _live(adapter)))
            models += [_model(services, version.id, version) for version in adapter.versions if not version.retired_at]
        return JSONResponse(_listed(models))

    # Hub ids have a slash within.
    @routes.get("/v1/models/{model:path}", dependencies=[reader])
    async def get_model(model: str) -> Response:
        if model == services.base.id:
            return JSONResponse(_base_model(services))
        version = await to_thread.run_sync(services.registry.resolve, model)
        return JSONResponse(_model(services, model, version))


def _base_model(services: Services) -> Json:
    base = services.base
    facts = {"digest": base.digest, "num_parameters": base.num_parameters, **services.engine.base_card}
    return {
        "id": base.id,
        "object": "model",
        "created": services.started_at,
        "owned_by": "graftwork",
        "graftwork": facts,
    }


def _model(services: Services, model: str, version: Version) -> Json:
    return {
        "id": model,
        "object": "model",
        "created": int(version.created_at.timestamp()),
        "owned_by": "graftwork",
        "parent": services.base.id,
        "root": version.id,
    }


# ------------------------------------------------------------------------------------------------------ adapters


def _add_adapter_routes(routes: APIRouter, services: Services) -> None:
    registry, engine, traffic = services.registry, services.engine, services.traffic
    reader = Depends(services.authenticator.require(Role.APP))
    operator = Depends(services.authenticator.require(Role.OPERATOR))
    pushes = Pushes(services)

    @routes.get("/v1/adapters", dependencies=[reader])
    async def list_adapters(page: Annotated[PageParameters, Query()]) -> Response:
        found = await _beside(registry.adapters, after=page.after, limit=page.limit)
        residency = await _residency(engine)
        return JSONResponse(_page(found, lambda adapter: _adapter(adapter, residency, traffic)))

    @routes.get("/v1/adapters/{name}", dependencies=[reader])
    async def get_adapter(name: str) -> Response:
        adapter = await _beside(registry.adapter, name)
        return JSONResponse(_adapter(adapter, await _residency(engine), traffic))

    @routes.get("/v1/adapters/{name}/history", dependencies=[reader])
    async def history(name: str, page: Annotated[HistoryParameters, Query()]) -> Response:
        found = await _beside(registry.history, name, after=page.after, limit=page.limit)
        return JSONResponse(_page(found, _event))

    @routes.post("/v1/adapters/{name}/versions")
    async def push(
        request: Request, name: str, to: Annotated[PushParameters, Query()], who: Principal = operator
    ) -> Response:
        version, new = await pushes.push(name, request, alias=to.alias, actor=who.name)
        return JSONResponse(_version(version, await _residency(engine), traffic), 201 if new else 200)

    @routes.put("/v1/adapters/{name}/aliases/{alias}")
    async def promote(request: Request, name: str, alias: str, who: Principal = operator) -> Response:
        body = parse(PromotedVersion, await request.body())
        event = await _beside(registry.set_alias, name, alias, body.version, actor=who.name, reason=body.reason)
        log.info("%s: %s@%s is version %s", who.name, name, alias, event.to_version)
        return JSONResponse(_event(event))

    @routes.post("/v1/adapters/{name}/rollback")
    async def rollback(request: Request, name: str, who: Principal = operator) -> Response:
        body = parse(Rollback, await request.body() or b"{}")
        event = await _beside(registry.rollback, name, alias=body.alias, actor=who.name, reason=body.reason)
        log.info("%s: %s@%s is back at version %s", who.name, name, body.alias, event.to_version)
        return JSONResponse(_event(event))

    @routes.delete("/v1/adapters/{name}/versions/{number}")
    async def retire(name: str, number: str, who: Principal = operator) -> Response:
        if not _VERSION.fullmatch(number):
            await _beside(registry.adapter, name)
            raise NotFound(f"versions of {name!r} are numbers from 1, as in /v1/adapters/{name}/versions/7")
        version = await _beside(registry.retire, name, int(number), actor=who.name)
        log.info("%s retired %s", who.name, version.id)
        return JSONResponse(_version(version, await _residency(engine), traffic))


def _all_adapters(services: Services) -> list[Adapter]:
    adapters: list[Adapter] = []
    while True:
        page = services.registry.adapters(after=adapters[-1].name if adapters else None, limit=100)
        adapters += page
        if not page.has_more:
            return adapters


async def _residency(engine: EngineHandle) -> Mapping[str, Residency]:
    """Where adapters are. An engine that cannot say holds up no list, and no change that has been made."""
    try:
        return await engine.residency()
    except Unavailable as unavailable:
        log.debug("nothing is known of residency: %s", unavailable)
        return {}


def _live(adapter: Adapter) -> Version:
    return adapter.versions[adapter.aliases[LIVE] - 1]


def _tier(residency: Mapping[str, Residency], version: Version) -> str:
    seat = residency.get(version.digest)
    return seat.tier if seat is not None and seat.tier in ("device", "host") else "store"


def _version(version: Version, residency: Mapping[str, Residency], traffic: Traffic) -> Json:
    seat = residency.get(version.digest)
    num_requests, num_tokens = traffic.of(version.id)
    return {
        "object": "adapter.version",
        "id": version.id,
        "name": version.name,
        "version": version.number,
        "digest": version.digest,
        "base_digest": version.base_digest,
        "verified": version.verified,
        "rank": version.rank,
        "num_parameters": version.num_parameters,
        "num_bytes": version.num_bytes,
        "created_at": int(version.created_at.timestamp()),
        "parent": version.parent,
        "data_digest": version.data_digest,
        "peft_config": version.config,
        "metadata": version.metadata,
        "retired_at": None if version.retired_at is None else int(version.retired_at.timestamp()),
        "residency": _tier(residency, version),
        "load_ms": None if seat is None or seat.load_ms is None else round(seat.load_ms, 1),
        "requests": num_requests,
        "tokens": num_tokens,
    }


def _adapter(adapter: Adapter, residency: Mapping[str, Residency], traffic: Traffic) -> Json:
    versions = [_version(version, residency, traffic) for version in adapter.versions]
    return {
        "object": "adapter",
        "name": adapter.name,
        "created_at": int(adapter.created_at.timestamp()),
        "aliases": dict(adapter.aliases),
        "versions": versions,
        "residency": _tier(residency, _live(adapter)),
        "requests": sum(version["requests"] for version in versions),
        "tokens": sum(version["tokens"] for version in versions),
    }


def _event(event: AliasEvent) -> Json:
    return {
        "object": "adapter.event",
        "id": event.id,
        "at": event.at.timestamp(),
        "action": event.action,
        "name": event.name,
        "alias": event.alias,
        "from_version": event.from_version,
        "to_version": event.to_version,
        "actor": event.actor,
        "reason": event.reason,
    }


# ---------------------------------------------------------------------------------------------------------- keys


def _add_key_routes(routes: APIRouter, services: Services) -> None:
    keys, authenticator = services.keys, services.authenticator
    admin = Depends(authenticator.require(Role.ADMIN))

    @routes.get("/v1/keys", dependencies=[admin])
    async def list_keys(page: Annotated[PageParameters, Query()]) -> Response:
        return JSONResponse(_page(_slice(await _beside(keys.list), page), _key))

    @routes.post("/v1/keys")
    async def create_key(request: Request, who: Principal = admin) -> Response:
        body = parse(NewKey, await request.body())
        role = Role.parse(body.role)
        if authenticator.open and role is not Role.ADMIN:
            raise Conflict(
                "this server has no key yet, and the first one locks it: create one with the role admin first, "
                "and use it to create the others"
            )
        secret, key = await _beside(keys.create, body.name, role)
        await to_thread.run_sync(authenticator.recheck)
        log.info("%s created the %s key %s for %r", who.name, role.value, key.id, key.name)
        return JSONResponse({**_key(key), "secret": secret}, 201, {"cache-control": "no-store"})

    @routes.delete("/v1/keys/{key_id}")
    async def revoke_key(key_id: str, who: Principal = admin) -> Response:
        key = await _beside(keys.revoke, key_id)
        log.info("%s revoked the key %s of %r", who.name, key.id, key.name)
        return JSONResponse(_key(key))


def _key(key: Key) -> Json:
    return {
        "object": "key",
        "id": key.id,
        "name": key.name,
        "role": key.role.value,
        "created_at": int(key.created_at.timestamp()),
        "revoked_at": None if key.revoked_at is None else int(key.revoked_at.timestamp()),
    }


def _slice(keys: Sequence[Key], page: PageParameters) -> Page[Key]:
    ids = [key.id for key in keys]
    if page.after is not None and page.after not in ids:
        raise InvalidRequest("after names no key: give the id of the last one of the page before", param="after")
    start = 0 if page.after is None else ids.index(page.after) + 1
    return Page(keys[start : start + page.limit], has_more=len(keys) > start + page.limit)


# --------------------------------------------------------------------------------------------------------- lists


def _listed(data: Sequence[Json], *, has_more: bool = False) -> Json:
    return {"object": "list", "data": data, "has_more": has_more}


def _page(page: Page[T], show: Callable[[T], Json]) -> Json:
    return _listed([show(item) for item in page], has_more=page.has_more)


async def _beside(function: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Call what may wait for the disk without holding up the event loop."""
    return await to_thread.run_sync(partial(function, *arguments, **options))
