"""API keys."""

from __future__ import annotations

from graftwork.clients.endpoints.parts import path_of, reader_of, without_none
from graftwork.clients.http.calls import Call, CallRequest
from graftwork.clients.types.keys import Key
from graftwork.clients.types.pages import Page


def create(name: str, *, role: str = "app") -> Call[Key]:
    """Create an API key. Its ``secret`` is only in this response. ``role`` is app, operator or admin."""
    request = CallRequest(method="POST", path=path_of("keys"), json={"name": name, "role": role})
    return Call(request=request, read=reader_of(Key))


def list(*, after: str | None = None, limit: int | None = None) -> Call[Page[Key]]:
    """List API keys, without their secrets; ``after`` is the last id of the previous page."""
    request = CallRequest(method="GET", path=path_of("keys"), query=without_none(after=after, limit=limit))
    return Call(request=request, read=reader_of(Page[Key]))


def revoke(id: str) -> Call[Key]:
    """Revoke an API key.

    Raises:
        NotFoundError: if there is no such key.
    """
    return Call(request=CallRequest(method="DELETE", path=path_of("keys", id)), read=reader_of(Key))
