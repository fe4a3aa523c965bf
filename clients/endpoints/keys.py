"""API keys."""

from __future__ import annotations

from graftwork.clients.endpoints.parts import path_of, reader_of, without_none
from graftwork.clients.http.calls import Call, CallRequest
from graftwork.clients.types.keys import Key
from graftwork.clients.types.pages import Page


def create(name: str, *, role: str = "app") -> Call[Key]:
    """Make an API key; its ``secret`` is in this answer and never shown again. Roles: app, operator, admin."""
    request = CallRequest(method="POST", path=path_of("keys"), json={"name": name, "role": role})
    return Call(request=request, read=reader_of(Key))


def list(*, after: str | None = None, limit: int | None = None) -> Call[Page[Key]]:
    """A page of the API keys, without their secrets."""
    request = CallRequest(method="GET", path=path_of("keys"), query=without_none(after=after, limit=limit))
    return Call(request=request, read=reader_of(Page[Key]))


def revoke(id: str) -> Call[Key]:
    """Make a key useless from now on."""
    return Call(request=CallRequest(method="DELETE", path=path_of("keys", id)), read=reader_of(Key))
