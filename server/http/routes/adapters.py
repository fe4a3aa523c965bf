"""``/v1/adapters``: adapters, their versions, aliases and history."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field
from starlette.responses import JSONResponse, Response

from graftwork.adapters.access.keys import Role
from graftwork.adapters.access.principal import Principal
from graftwork.adapters.errors import GraftworkError, NotFound, Unavailable
from graftwork.adapters.names import LIVE, check_name
from graftwork.adapters.registry import Adapter, AliasEvent, Version
from graftwork.server.bodies import StrictModel, Text, parse
from graftwork.server.generation.limiter import subject_of
from graftwork.server.http.lists import PageParameters, Parameters, in_thread, page_body
from graftwork.server.http.openapi import json_body, json_or_form_body
from graftwork.server.http.push import PushedPath, Pushes, PushForm
from graftwork.server.http.routes.keys import NewLimits, show_limits, show_standing
from graftwork.server.http.schemas.adapters import (
    AdapterEventObject,
    AdapterLimitsObject,
    AdapterObject,
    PushedVersionObject,
    Residency,
    VersionObject,
)
from graftwork.server.http.schemas.lists import ListObject
from graftwork.server.http.services import Services
from graftwork.server.observability.traffic import Traffic
from graftwork.server.transport.engine import AdapterPlacement, EngineProtocol

log = logging.getLogger(__name__)

#: An alias moves after so long, whether the version's weights are ready or not.
PREFETCH_SECONDS: Final = 2.0

_VERSION = re.compile(r"[1-9][0-9]{0,17}")


class PromotedVersion(StrictModel):
    """The body of a promotion: the version that the alias shall point to."""

    version: Annotated[int, Field(ge=1)]
    reason: Text | None = None
    end_experiment: bool = False


class Rollback(StrictModel):
    """The body of a rollback: the alias that shall point to its previous version."""

    alias: Text = LIVE
    reason: Text | None = None
    end_experiment: bool = False


class PushParameters(Parameters):
    """The query of a push: an alias to move to the new version."""

    alias: str | None = None


class HistoryParameters(Parameters):
    """The page of a history, newest event first."""

    after: Annotated[int, Field(ge=0)] | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20


def add(routes: APIRouter, services: Services) -> None:
    """Add the routes of adapters."""
    registry, engine, traffic = services.registry, services.engine, services.traffic
    reader = Depends(services.authenticator.require(Role.APP))
    operator = Depends(services.authenticator.require(Role.OPERATOR))
    pushes = Pushes(services)

    @routes.get("/v1/adapters", dependencies=[reader], response_model=ListObject[AdapterObject])
    async def list_adapters(page: Annotated[PageParameters, Query()]) -> Response:
        found = await in_thread(registry.adapters, after=page.after, limit=page.limit)
        residency = await adapter_states(engine)
        return JSONResponse(page_body(found, lambda adapter: _adapter(adapter, residency, traffic)))

    @routes.get("/v1/adapters/{name}", dependencies=[reader], response_model=AdapterObject)
    async def get_adapter(name: str) -> Response:
        adapter = await in_thread(registry.adapter, name)
        return JSONResponse(_adapter(adapter, await adapter_states(engine), traffic))

    @routes.get("/v1/adapters/{name}/history", dependencies=[reader], response_model=ListObject[AdapterEventObject])
    async def history(name: str, page: Annotated[HistoryParameters, Query()]) -> Response:
        found = await in_thread(registry.history, name, after=page.after, limit=page.limit)
        return JSONResponse(page_body(found, _event))

    @routes.post(
        "/v1/adapters/{name}/versions",
        status_code=201,
        response_model=PushedVersionObject,
        responses={200: {"model": PushedVersionObject, "description": "The same bytes were there already"}},
        openapi_extra=json_or_form_body(PushedPath, PushForm),
    )
    async def push(
        request: Request, name: str, to: Annotated[PushParameters, Query()], who: Principal = operator
    ) -> Response:
        pushed = await pushes.push(name, request, alias=to.alias, actor=who.name)
        shown = _version(pushed.version, await adapter_states(engine), traffic)
        return JSONResponse({**shown, "warnings": pushed.warnings}, 201 if pushed.is_new else 200)

    @routes.post("/v1/adapters/{name:path}/versions", include_in_schema=False, dependencies=[operator])
    async def push_of_a_path(name: str) -> None:
        """Names as other servers have them, ``acme/intents``: refused with the nearest that can be."""
        check_name(name, base_id=services.base.id)

    @routes.put(
        "/v1/adapters/{name}/aliases/{alias}",
        response_model=AdapterEventObject,
        openapi_extra=json_body(PromotedVersion),
    )
    async def promote(request: Request, name: str, alias: str, who: Principal = operator) -> Response:
        body = parse(PromotedVersion, await request.body())
        move = partial(registry.set_alias, name, alias, body.version, actor=who.name, reason=body.reason)
        await _prefetch(services, name, body.version)
        event = await in_thread(_move, services, name, move, who, end_experiment=body.end_experiment)
        log.info("%s: %s@%s is version %s", who.name, name, alias, event.to_version)
        return JSONResponse(_event(event))

    @routes.post(
        "/v1/adapters/{name}/rollback",
        response_model=AdapterEventObject,
        openapi_extra=json_body(Rollback, required=False),
    )
    async def rollback(request: Request, name: str, who: Principal = operator) -> Response:
        body = parse(Rollback, await request.body() or b"{}")
        move = partial(registry.rollback, name, alias=body.alias, actor=who.name, reason=body.reason)
        event = await in_thread(_move, services, name, move, who, end_experiment=body.end_experiment)
        log.info("%s: %s@%s is back at version %s", who.name, name, body.alias, event.to_version)
        return JSONResponse(_event(event))

    @routes.get("/v1/adapters/{name}/limits", dependencies=[operator], response_model=AdapterLimitsObject)
    async def get_limits(name: str) -> Response:
        return JSONResponse(await in_thread(_limits, services, name))

    @routes.put("/v1/adapters/{name}/limits", response_model=AdapterLimitsObject, openapi_extra=json_body(NewLimits))
    async def set_limits(request: Request, name: str, who: Principal = operator) -> Response:
        limits = parse(NewLimits, await request.body()).limits()
        await in_thread(services.adapter_limits.set, name, limits)
        log.info("%s: the limits of %s are %s", who.name, name, limits.to_json() or "none")
        return JSONResponse(await in_thread(_limits, services, name))

    @routes.delete("/v1/adapters/{name}/versions/{number}", response_model=VersionObject)
    async def retire(name: str, number: str, who: Principal = operator) -> Response:
        if not _VERSION.fullmatch(number):
            await in_thread(registry.adapter, name)
            raise NotFound(f"versions of {name!r} are numbers from 1, as in /v1/adapters/{name}/versions/7")
        version = await in_thread(registry.retire, name, int(number), actor=who.name)
        log.info("%s retired %s", who.name, version.id)
        return JSONResponse(_version(version, await adapter_states(engine), traffic))


def _limits(services: Services, name: str) -> AdapterLimitsObject:
    limits = services.adapter_limits.get(name)
    used = show_standing(services.limiter.standing(subject_of(name)))
    return {"object": "adapter.limits", "adapter": name, "limits": show_limits(limits), **used}


async def _prefetch(services: Services, name: str, number: int) -> None:
    """Have a version's weights where its requests will go, before they come. Moves wait for it a moment at most."""
    try:
        version = await in_thread(services.registry.version, name, number)
        if not version.is_reward_model:
            async with asyncio.timeout(PREFETCH_SECONDS):
                if services.artifact_cache is not None:
                    await services.artifact_cache.ensure(version.digest)
                await services.engine.ensure(version.digest)
    except (GraftworkError, TimeoutError) as error:
        log.debug("%s@%s was not fetched before it is used: %s", name, number, error)


def _move(
    services: Services, name: str, move: Callable[..., AliasEvent], who: Principal, *, end_experiment: bool
) -> AliasEvent:
    """Move an alias; first end the experiment that would forbid it, if ``end_experiment``."""
    if not end_experiment:
        return move()
    reason = f"{who.name} moved an alias of {name} and ended the experiment with it"
    return services.experiments.end_and_move(
        name, lambda connection: move(within=connection), actor=who.name, reason=reason
    )


def all_adapters(services: Services) -> list[Adapter]:
    """All adapters of the registry."""
    adapters: list[Adapter] = []
    while True:
        page = services.registry.adapters(after=adapters[-1].name if adapters else None, limit=100)
        adapters += page
        if not page.has_more:
            return adapters


async def adapter_states(engine: EngineProtocol) -> Mapping[str, AdapterPlacement]:
    """Where adapters are, by digest; empty if the engine cannot tell.

    An unavailable engine must not fail a list, nor a change that has been made.
    """
    try:
        return await engine.residency()
    except Unavailable as unavailable:
        log.debug("nothing is known of residency: %s", unavailable)
        return {}


def live_version(adapter: Adapter) -> Version:
    """The version that ``live`` points to."""
    return adapter.versions[adapter.aliases[LIVE] - 1]


def tier_of(residency: Mapping[str, AdapterPlacement], version: Version) -> Residency:
    """Where a version's weights are."""
    placement = residency.get(version.digest)
    match placement and placement.tier:
        case "device":
            return "device"
        case "host":
            return "host"
    return "store"


def _version(version: Version, residency: Mapping[str, AdapterPlacement], traffic: Traffic) -> VersionObject:
    placement = residency.get(version.digest)
    num_requests, num_tokens = traffic.totals(version.id)
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
        "residency": tier_of(residency, version),
        "load_ms": None if placement is None or placement.load_ms is None else round(placement.load_ms, 1),
        "requests": num_requests,
        "tokens": num_tokens,
    }


def _adapter(adapter: Adapter, residency: Mapping[str, AdapterPlacement], traffic: Traffic) -> AdapterObject:
    versions = [_version(version, residency, traffic) for version in adapter.versions]
    return {
        "object": "adapter",
        "name": adapter.name,
        "created_at": int(adapter.created_at.timestamp()),
        "aliases": dict(adapter.aliases),
        "versions": versions,
        "residency": tier_of(residency, live_version(adapter)),
        "requests": sum(version["requests"] for version in versions),
        "tokens": sum(version["tokens"] for version in versions),
    }


def _event(event: AliasEvent) -> AdapterEventObject:
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
