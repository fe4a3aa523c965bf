"""``GET /`` and ``/page``: the files of the page. ``/session``: signing in and out. They are for the page alone."""

from __future__ import annotations

import logging
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import PurePosixPath
from typing import Final, Literal

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from typing_extensions import TypedDict

from graftwork.adapters.access.keys import sha256_of
from graftwork.adapters.access.principal import Principal
from graftwork.adapters.errors import Forbidden, NotFound, Unauthorized
from graftwork.server.bodies import StrictModel, Text, parse
from graftwork.server.http.auth import UNKNOWN_KEY
from graftwork.server.http.lists import in_thread
from graftwork.server.http.services import Services
from graftwork.server.http.sessions import COOKIE, HEADER, MAX_SECONDS, is_from_page

log = logging.getLogger(__name__)

MEDIA_TYPES: Final = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

HEADERS: Final = {
    # Its own files and this server only; and no script may make elements of a text.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "cache-control": "no-cache",
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


NO_STORE: Final = {"cache-control": "no-store"}


class SessionObject(TypedDict):
    """Who the page belongs to, all null if nobody has signed in. ``open``: the server has no key yet.

    ``adapters`` null: all.
    """

    object: Literal["session"]
    name: str | None
    role: str | None
    key_id: str | None
    adapters: list[str] | None
    open: bool


class SignIn(StrictModel):
    """The body with which a session begins."""

    key: Text


def add(routes: APIRouter, services: Services) -> None:
    """Add the routes of the page."""
    authenticator = services.authenticator
    files = _files(resources.files(__package__).joinpath("static"))

    @routes.get("/", response_class=HTMLResponse)
    async def operators_page() -> Response:
        return Response(files["index.html"], media_type=MEDIA_TYPES[".html"], headers=HEADERS)

    @routes.get("/page/{path:path}", include_in_schema=False)
    async def page_file(path: str) -> Response:
        if path not in files:
            raise NotFound(f"the page has no file {path[:128]!r}: open it at /", code="unknown_url")
        return Response(files[path], media_type=MEDIA_TYPES[PurePosixPath(path).suffix], headers=HEADERS)

    @routes.get("/session", include_in_schema=False, response_model=SessionObject)
    async def session(request: Request) -> Response:
        try:
            who = authenticator.authenticate(request)
        except Unauthorized:
            who = None  # no error: the page asks who is there in order to offer what is missing
        return JSONResponse(_session(who, is_open=authenticator.open), headers=NO_STORE)

    @routes.post("/session", include_in_schema=False, response_model=SessionObject)
    async def sign_in(request: Request) -> Response:
        _check_page(request)
        body = parse(SignIn, await request.body())
        bearer = body.key.strip()
        key = await in_thread(services.keys.authenticate, bearer)
        who = None if key is None else authenticator.find(key.id)
        if who is None:
            raise Unauthorized(UNKNOWN_KEY)
        log.info("%s signed in to the page", who.name)
        answer = JSONResponse(_session(who, is_open=False), headers=NO_STORE)
        answer.set_cookie(
            COOKIE,
            authenticator.sessions.token(who.key_id, sha256_of(bearer)),
            max_age=MAX_SECONDS,
            # What the browser says, since a proxy may stand before this server.
            secure=request.headers.get("origin", "").startswith("https://"),
            httponly=True,
            samesite="strict",
        )
        return answer

    @routes.delete("/session", include_in_schema=False, response_model=SessionObject)
    async def sign_out(request: Request) -> Response:
        _check_page(request)
        answer = JSONResponse(_session(None, is_open=authenticator.open))
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer


def _files(folder: Traversable, below: str = "") -> dict[str, bytes]:
    """The contents of all files in a folder, by their paths."""
    files: dict[str, bytes] = {}
    for entry in folder.iterdir():
        path = below + entry.name
        if entry.is_dir():
            files |= _files(entry, f"{path}/")
        elif PurePosixPath(path).suffix in MEDIA_TYPES:
            files[path] = entry.read_bytes()
    return files


def _session(who: Principal | None, *, is_open: bool) -> SessionObject:
    return {
        "object": "session",
        "name": None if who is None else who.name,
        "role": None if who is None else who.role.value,
        "key_id": None if who is None else who.key_id,
        "adapters": None if who is None or who.scope is None else sorted(who.scope),
        "open": is_open,
    }


def _check_page(request: Request) -> None:
    if not is_from_page(request):
        raise Forbidden(
            f"sessions are for this server's own page, which sends the header {HEADER}: "
            "other clients send their key with each request, as 'Authorization: Bearer YOUR_KEY'",
            code="not_from_page",
        )
