"""Authentication and authorization: bearer keys with roles, as one dependency that every route uses.

A request without a key may have a session of the page instead (``sessions.py``), which stands for a key. A server
without any key answers its own machine only, and then also checks ``Host`` and ``Origin``.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Protocol
from urllib.parse import urlsplit

from fastapi import Security
from fastapi.security import HTTPBearer
from starlette.requests import HTTPConnection, Request

from graftwork.adapters.access import audit, scope
from graftwork.adapters.access.audit import Change
from graftwork.adapters.access.keys import Key, Role
from graftwork.adapters.access.principal import LOCAL_PRINCIPAL, Principal
from graftwork.adapters.errors import Forbidden, Unauthorized
from graftwork.server.http.sessions import Sessions

_RECHECK_SECONDS = 1.0

UNKNOWN_KEY = "this key is unknown, was revoked or has expired: check it, or ask an admin for a new one"

BEARER = HTTPBearer(scheme_name="bearer", auto_error=False)
"""What OpenAPI documents; the header is read by :class:`Authenticator`."""


class KeyRing(Protocol):
    """The part of ``graftwork.adapters.access.keys.Keys`` that is needed here. Methods may block for a short read."""

    def authenticate(self, bearer: str, /) -> Key | None:
        """The key whose secret this is, or ``None`` if it is unknown, revoked or expired."""

    def get(self, key_id: str, /) -> Key | None:
        """The key with this id, or ``None`` if it is unknown, revoked or expired."""

    def hashes(self, key_id: str, /) -> Sequence[str]:
        """The hashes of the secrets with which a key is authenticated now; none if it is unknown."""

    def configured(self) -> bool:
        """Whether any key exists."""


class Authenticator:
    """Checks bearer keys.

    Args:
        keys: The keys of the database.
        open_to_loopback: While no key exists, callers on this machine are admins without one.
        own: A key that the server gave to a process of its own, and that process's principal.
        cors_origins: Sites whose pages may call a server without keys, beside this machine's own. ``*`` counts only
            where there are keys.
        sessions: Of the page; without, they end with this object.
    """

    def __init__(
        self,
        keys: KeyRing,
        *,
        open_to_loopback: bool,
        own: tuple[str, Principal] | None = None,
        cors_origins: Collection[str] = (),
        sessions: Sessions | None = None,
    ) -> None:
        self.sessions = sessions or Sessions(secrets.token_bytes(32))
        self._keys = keys
        self._own = own
        self._cors_origins = frozenset(cors_origins) - {"*"}
        self._open = open_to_loopback
        self._checked_at = -_RECHECK_SECONDS

    def require(
        self, role: Role, *, unscoped: bool = False, changes: bool = True
    ) -> Callable[[Request], Awaitable[Principal]]:
        """A FastAPI dependency that lets in ``role`` and above.

        It puts the caller into ``request.state.principal``, enters the scope of its key, and raises what
        ``authenticate`` raises, or ``Forbidden``.

        Args:
            role: The lowest one that is let in.
            unscoped: Whether keys that are limited to some adapters are kept out: what is behind it is about all.
            changes: Whether requests that are not ``GET`` change something, and so stand in the audit log.
        """

        async def allowed(request: Request, _documented: object = Security(BEARER)) -> Principal:
            principal = self.authenticate(request)
            if changes and request.method != "GET":
                request.state.change = _change(request, principal)
                audit.begin(request.state.change)
            if principal.role < role:
                raise Forbidden(
                    f"this needs a key of role {role.value} or above, and yours is {principal.role.value}: "
                    "ask an admin for one"
                )
            if unscoped and principal.scope is not None:
                raise Forbidden(
                    "this is about all adapters, and your key is limited to some: ask an admin for a key without "
                    "adapters",
                    code="key_has_scope",
                )
            request.state.principal = principal
            scope.enter(principal.scope)
            return principal

        return allowed

    def authenticate(self, connection: HTTPConnection) -> Principal:
        """The caller.

        Raises:
            Unauthorized: There is no key, or it is unknown, revoked or expired.
            Forbidden: On a server without keys: the request names another host or comes from another site's page.
        """
        bearer = _key(connection)
        if self._own is not None and hmac.compare_digest(bearer.encode(), self._own[0].encode()):
            return self._own[1]
        key = self._keys.authenticate(bearer) if bearer else self._signed_in(connection)
        if key is not None:
            return _principal(key)
        if self.open:
            _check_local(connection, self._cors_origins)
            return LOCAL_PRINCIPAL
        if bearer:
            raise Unauthorized(UNKNOWN_KEY)
        raise Unauthorized("no key was given: send the header 'Authorization: Bearer YOUR_KEY'", code="missing_api_key")

    def _signed_in(self, connection: HTTPConnection) -> Key | None:
        """The key of the session that a request belongs to, if it still counts."""
        key_id = self.sessions.key_id(connection, self._keys.hashes)
        return None if key_id is None else self._keys.get(key_id)

    def find(self, key_id: str) -> Principal | None:
        """Who has called with the key of this id, if they still may: for what is done later than it was asked for."""
        if self._own is not None and key_id == self._own[1].key_id:
            return self._own[1]
        if key_id == LOCAL_PRINCIPAL.key_id:
            return LOCAL_PRINCIPAL if self.open else None
        key = self._keys.get(key_id)
        return None if key is None else _principal(key)

    @property
    def open(self) -> bool:
        """Whether callers need no key at the moment. Another process may have created the first one."""
        if self._open and time.monotonic() - self._checked_at >= _RECHECK_SECONDS:
            self.recheck()
        return self._open

    def recheck(self) -> None:
        """Look for a key in the database now. Once there is one, this server always requires a key."""
        self._open = self._open and not self._keys.configured()
        self._checked_at = time.monotonic()


def _change(request: Request, who: Principal) -> Change:
    return Change(
        actor=who.name,
        key_id=who.key_id,
        action=request.scope["route"].name,
        target=request.url.path.removeprefix("/").removeprefix("v1/"),
        request_id=request.state.request_id,
        remote=None if request.client is None else request.client.host,
    )


def _principal(key: Key) -> Principal:
    return Principal(key.name, key.role, key.id, key.scope)


def _key(connection: HTTPConnection) -> str:
    """The caller's key, in OpenAI's header, Anthropic's or Azure's; empty if there is none."""
    headers = connection.headers
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and bearer.strip():
        return bearer.strip()
    return (headers.get("x-api-key") or headers.get("api-key") or "").strip()


def _check_local(connection: HTTPConnection, allowed_origins: Collection[str]) -> None:
    if connection.client is not None and not _is_loopback(connection.client.host):
        raise Unauthorized("without a key this server only answers its own machine: start it with an admin key")
    for header in ("host", "origin"):
        value = connection.headers.get(header)
        if header == "origin" and value in allowed_origins:
            continue
        if value is not None and not _is_loopback(_hostname(value)):
            raise Forbidden(
                f"the {header.capitalize()} header names another machine, and without a key this server only answers "
                "its own: use http://127.0.0.1, or start it with an admin key",
                code="not_local",
            )


def _hostname(value: str) -> str:
    """The host in ``localhost:8000``, ``[::1]:8000`` or ``http://localhost:3000``; empty if there is none."""
    try:
        return urlsplit(value if "//" in value else f"//{value}").hostname or ""
    except ValueError:
        return ""


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
