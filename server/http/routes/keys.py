"""``/v1/keys``: API keys, made, changed, rotated and revoked by admins."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, cast

from anyio import to_thread
from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field
from starlette.responses import JSONResponse, Response

from graftwork.adapters.access.keys import DEFAULT_OVERLAP, Key, Role
from graftwork.adapters.access.limits import LIMIT_NAMES, Limits
from graftwork.adapters.access.principal import Principal
from graftwork.adapters.access.scope import read_scope
from graftwork.adapters.errors import Conflict, InvalidRequest
from graftwork.adapters.storage.database import Page
from graftwork.server.bodies import Label, StrictModel, Text, parse
from graftwork.server.generation.limiter import Standing
from graftwork.server.http.lists import PageParameters, in_thread, page_body
from graftwork.server.http.openapi import json_body
from graftwork.server.http.schemas.keys import KeyObject, KeyUsageObject, LimitsObject, StandingObject
from graftwork.server.http.schemas.lists import ListObject
from graftwork.server.http.services import Services

log = logging.getLogger(__name__)

NO_STORE = {"cache-control": "no-store"}
"""Headers of answers that hold a secret."""


class NewLimits(StrictModel):
    """Limits of a key or an adapter; one that is null or left out is none."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None

    def limits(self) -> Limits:
        """The limits that it names."""
        return Limits(**self.model_dump())


class NewKey(StrictModel):
    """The body that creates a key."""

    name: Text
    role: Text
    expires_at: float | None = None
    adapters: list[Label] | None = None
    limits: NewLimits | None = None


class KeyChanges(StrictModel):
    """The body that changes a key. What is left out stays; null ends a limit."""

    name: Text | None = None
    expires_at: float | None = None
    adapters: list[Label] | None = None
    limits: NewLimits | None = None


class Rotation(StrictModel):
    """The body that rotates a key: how long the old secret stays valid."""

    overlap_seconds: Annotated[float, Field(ge=0)] = DEFAULT_OVERLAP.total_seconds()


def add(routes: APIRouter, services: Services) -> None:
    """Add the routes of keys."""
    keys, authenticator = services.keys, services.authenticator
    admin = Depends(authenticator.require(Role.ADMIN))

    @routes.get("/v1/keys", dependencies=[admin], response_model=ListObject[KeyObject])
    async def list_keys(page: Annotated[PageParameters, Query()]) -> Response:
        return JSONResponse(page_body(_slice(await in_thread(keys.list), page), _key))

    @routes.post("/v1/keys", status_code=201, response_model=KeyObject, openapi_extra=json_body(NewKey))
    async def create_key(request: Request, who: Principal = admin) -> Response:
        body = parse(NewKey, await request.body())
        role = Role.parse(body.role)
        if authenticator.open and role is not Role.ADMIN:
            raise Conflict(
                "this server has no key yet, and the first one locks it: create one with the role admin first, "
                "and use it to create the others"
            )
        secret, key = await in_thread(keys.create, role=role, **_settings(body))
        await to_thread.run_sync(authenticator.recheck)
        log.info("%s created the %s key %s for %r", who.name, role.value, key.id, key.name)
        return JSONResponse({**_key(key), "secret": secret}, 201, NO_STORE)

    @routes.get("/v1/keys/{key_id}", dependencies=[admin], response_model=KeyObject)
    async def get_key(key_id: str) -> Response:
        return JSONResponse(_key(await in_thread(keys.record, key_id)))

    @routes.get("/v1/keys/{key_id}/usage", dependencies=[admin], response_model=KeyUsageObject)
    async def get_usage(key_id: str) -> Response:
        key = await in_thread(keys.record, key_id)
        used: KeyUsageObject = {
            "object": "key.usage",
            "id": key.id,
            **show_standing(services.limiter.standing(key.id)),
        }
        return JSONResponse(used)

    @routes.patch("/v1/keys/{key_id}", response_model=KeyObject, openapi_extra=json_body(KeyChanges))
    async def change_key(request: Request, key_id: str, who: Principal = admin) -> Response:
        changes = _settings(parse(KeyChanges, await request.body()))
        if not changes:
            raise InvalidRequest("nothing is to be changed: give a name, expires_at, adapters or limits", param="name")
        key = await in_thread(keys.change, key_id, changes)
        log.info("%s changed the %s of the key %s of %r", who.name, ", ".join(changes), key.id, key.name)
        return JSONResponse(_key(key))

    @routes.post(
        "/v1/keys/{key_id}/rotate", response_model=KeyObject, openapi_extra=json_body(Rotation, required=False)
    )
    async def rotate_key(request: Request, key_id: str, who: Principal = admin) -> Response:
        body = parse(Rotation, await request.body() or b"{}")
        try:
            overlap = timedelta(seconds=body.overlap_seconds)
        except OverflowError:
            overlap = timedelta.max
        secret, key = await in_thread(keys.rotate, key_id, overlap=overlap)
        log.info("%s rotated the key %s of %r", who.name, key.id, key.name)
        return JSONResponse({**_key(key), "secret": secret}, headers=NO_STORE)

    @routes.delete("/v1/keys/{key_id}", response_model=KeyObject)
    async def revoke_key(key_id: str, who: Principal = admin) -> Response:
        key = await in_thread(keys.revoke, key_id)
        log.info("%s revoked the key %s of %r", who.name, key.id, key.name)
        return JSONResponse(_key(key))


def _settings(body: NewKey | KeyChanges) -> dict[str, Any]:
    """What a body says of a key, as ``Keys`` takes it; only what it says."""
    given = body.model_fields_set
    settings: dict[str, Any] = {}
    if "name" in given:
        settings["name"] = body.name or ""
    if "expires_at" in given:
        settings["expires_at"] = _moment(body.expires_at)
    if "adapters" in given:
        settings["scope"] = read_scope(body.adapters)
    if "limits" in given:
        settings["limits"] = Limits() if body.limits is None else body.limits.limits()
    return settings


def _moment(seconds: float | None) -> datetime | None:
    if seconds is None:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        raise InvalidRequest("expires_at is a moment in unix seconds", param="expires_at") from None


def _key(key: Key) -> KeyObject:
    return {
        "object": "key",
        "id": key.id,
        "name": key.name,
        "role": key.role.value,
        "created_at": int(key.created_at.timestamp()),
        "expires_at": _seconds(key.expires_at),
        "adapters": None if key.scope is None else sorted(key.scope),
        "limits": show_limits(key.limits),
        "rotated_at": _seconds(key.rotated_at),
        "previous_until": _seconds(key.previous_until),
        "revoked_at": _seconds(key.revoked_at),
    }


def show_standing(standing: Standing) -> StandingObject:
    """The JSON of what was used."""
    return {
        "minute": {"requests": standing.requests, "tokens": standing.tokens},
        "day": {"requests": standing.today.requests, "tokens": standing.today.tokens},
        "month": {"requests": standing.month.requests, "tokens": standing.month.tokens},
        "open": standing.open,
    }


def show_limits(limits: Limits) -> LimitsObject:
    """The JSON of limits."""
    return cast(LimitsObject, {name: getattr(limits, name) for name in LIMIT_NAMES})


def _seconds(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())


def _slice(keys: Sequence[Key], page: PageParameters) -> Page[Key]:
    ids = [key.id for key in keys]
    if page.after is not None and page.after not in ids:
        raise InvalidRequest("after names no key: give the id of the last one of the page before", param="after")
    start = 0 if page.after is None else ids.index(page.after) + 1
    return Page(keys[start : start + page.limit], has_more=len(keys) > start + page.limit)
