"""API keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict, Unpack

from graftwork.clients.endpoints.parts import Timestamp, path_of, query_of, reader_of, without_none
from graftwork.clients.http.calls import Call, CallRequest
from graftwork.clients.types.keys import Key, KeyUsage
from graftwork.clients.types.pages import Page


class KeyOptions(TypedDict, total=False):
    """What a key is for. ``expires_at`` is when it ends, ``adapters`` are the names of those that it is for (``base``
    is the model without one), and ``limits`` are numbers by their names, see ``Limits``. ``None`` is no end, all
    adapters, no limits.
    """

    expires_at: Timestamp | None
    adapters: Sequence[str] | None
    limits: Mapping[str, int | None] | None


class KeyChanges(KeyOptions, total=False):
    """What changes of a key; what is left out stays."""

    name: str


def create(name: str, *, role: str = "app", **options: Unpack[KeyOptions]) -> Call[Key]:
    """Create an API key. Its ``secret`` is only in this response.

    Args:
        name: who or what uses it; no two keys have the same.
        role: app, operator or admin.
        options: what it is for.

    Raises:
        BadRequestError: if it cannot be so.
        ConflictError: if another key has the name.
    """
    body = {"name": name, "role": role, **without_none(**_body(options))}
    return Call(request=CallRequest(method="POST", path=path_of("keys"), json=body), read=reader_of(Key))


def list(*, after: str | None = None, limit: int | None = None) -> Call[Page[Key]]:
    """List API keys, without their secrets; ``after`` is the last id of the previous page."""
    request = CallRequest(method="GET", path=path_of("keys"), query=without_none(after=after, limit=limit))
    return Call(request=request, read=reader_of(Page[Key]))


def get(id: str) -> Call[Key]:
    """Get an API key, without its secret.

    Raises:
        NotFoundError: if there is no such key.
    """
    return Call(request=CallRequest(method="GET", path=path_of("keys", id)), read=reader_of(Key))


def usage(id: str) -> Call[KeyUsage]:
    """Get what an API key used, to be compared with its limits.

    Raises:
        NotFoundError: if there is no such key.
    """
    return Call(request=CallRequest(method="GET", path=path_of("keys", id, "usage")), read=reader_of(KeyUsage))


def change(id: str, **changes: Unpack[KeyChanges]) -> Call[Key]:
    """Change an API key. New ``limits`` take the place of all old ones.

    Raises:
        NotFoundError: if there is no such key.
        BadRequestError: if it cannot be so.
        ConflictError: if another key has the name, or the key was revoked.
    """
    request = CallRequest(method="PATCH", path=path_of("keys", id), json=_body(changes))
    return Call(request=request, read=reader_of(Key))


def rotate(id: str, *, overlap_seconds: float | None = None) -> Call[Key]:
    """Give an API key a new secret, which is only in this response.

    Args:
        id: the key.
        overlap_seconds: how long the old secret stays valid; a day by default, 0 ends it at once.

    Raises:
        NotFoundError: if there is no such key.
        ConflictError: if it was revoked.
    """
    body = without_none(overlap_seconds=overlap_seconds)
    return Call(request=CallRequest(method="POST", path=path_of("keys", id, "rotate"), json=body), read=reader_of(Key))


def revoke(id: str) -> Call[Key]:
    """Revoke an API key.

    Raises:
        NotFoundError: if there is no such key.
    """
    return Call(request=CallRequest(method="DELETE", path=path_of("keys", id)), read=reader_of(Key))


def _body(options: KeyOptions | KeyChanges) -> dict[str, object]:
    """The options as the server takes them; datetimes become unix seconds."""
    return {**options, **query_of({"expires_at": options.get("expires_at")})}
