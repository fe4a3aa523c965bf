"""``/v1/keys``: API keys, created and revoked by admins."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import JSONResponse, Response

from graftwork.adapters.access.keys import Key, Role
from graftwork.adapters.access.principal import Principal
from graftwork.adapters.errors import Conflict, InvalidRequest
from graftwork.adapters.storage.database import Page
from graftwork.server.bodies import StrictModel, Text, parse
from graftwork.server.http.lists import PageParameters, in_thread, page_body
from graftwork.server.http.openapi import json_body
from graftwork.server.http.schemas.keys import KeyObject
from graftwork.server.http.schemas.lists import ListObject
from graftwork.server.http.services import Services

log = logging.getLogger(__name__)


class NewKey(StrictModel):
    """The body that creates a key."""

    name: Text
    role: Text


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
        secret, key = await in_thread(keys.create, body.name, role)
        await to_thread.run_sync(authenticator.recheck)
        log.info("%s created the %s key %s for %r", who.name, role.value, key.id, key.name)
        return JSONResponse({**_key(key), "secret": secret}, 201, {"cache-control": "no-store"})

    @routes.delete("/v1/keys/{key_id}", response_model=KeyObject)
    async def revoke_key(key_id: str, who: Principal = admin) -> Response:
        key = await in_thread(keys.revoke, key_id)
        log.info("%s revoked the key %s of %r", who.name, key.id, key.name)
        return JSONResponse(_key(key))


def _key(key: Key) -> KeyObject:
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
