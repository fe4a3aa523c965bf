"""Logged requests and their answers."""

from __future__ import annotations

from typing import TypedDict, Unpack

from graftwork.clients.endpoints.parts import Timestamp, export_call, path_of, query_of, reader_of, without_none
from graftwork.clients.http.calls import SLOW_TIMEOUT, Call, CallRequest, LinesCall
from graftwork.clients.types.interactions import ErasureResult, Interaction
from graftwork.clients.types.pages import Page


class InteractionFilter(TypedDict, total=False):
    """Which interactions. ``status``: ok, error or cancelled; ``since`` and ``until`` as for feedback."""

    adapter: str | None
    experiment: str | None
    arm: str | None
    status: str | None
    user: str | None
    key_id: str | None
    since: Timestamp | None
    until: Timestamp | None


def list(
    *, after: str | None = None, limit: int | None = None, **which: Unpack[InteractionFilter]
) -> Call[Page[Interaction]]:
    """A page of logged requests and answers, newest first; ``after`` is the last one's id of the page before."""
    query = {**query_of(which), **without_none(after=after, limit=limit)}
    return Call(
        request=CallRequest(method="GET", path=path_of("interactions"), query=query), read=reader_of(Page[Interaction])
    )


def get(id: str) -> Call[Interaction]:
    """A logged request and its answers, with what was said of them."""
    return Call(request=CallRequest(method="GET", path=path_of("interactions", id)), read=reader_of(Interaction))


def export(**which: Unpack[InteractionFilter]) -> LinesCall[Interaction]:
    """All logged requests and answers, oldest first, read while they are iterated."""
    return export_call("interactions", which, Interaction)


def erase(*, user: str) -> Call[ErasureResult]:
    """Erase what a user left behind: interactions, and the words of feedback. Says which versions learned from it."""
    request = CallRequest(
        method="DELETE", path=path_of("interactions"), query={"user": user}, read_timeout=SLOW_TIMEOUT
    )
    return Call(request=request, read=reader_of(ErasureResult))
