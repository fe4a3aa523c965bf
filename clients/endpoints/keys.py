"""API keys."""

from __future__ import annotations

from graftwork.clients.endpoints.parts import given, one, path_of
from graftwork.clients.http.calls import Call, Request
from graftwork.clients.types.keys import Key
from graftwork.clients.types.pages import Page


def create(name: str, *, role: str = "app") -> Call[Key]:
    """Make an API key; its ``secret`` is in this answer and never shown again. Roles: app, operator, admin."""
    request = Request(method="POST", path=path_of("keys"), json={"name": name, "role": role})
    return Call(request=request, read=one(Key))


def list(*, after: str | None = None, limit: int | None = None) -> Call[Page[Key]]:
    """A page of the API keys, without their secrets."""
    request = Request(method="GET", path=path_of("keys"), query=given(after=after, limit=limit))
    return Call(request=request, read=one(Page[Key]))


def revoke(id: str) -> Call[Key]:
    """Make a key useless from now on."""
    return Call(request=Request(method="DELETE", path=path_of("keys", id)), read=one(Key))
