"""Logged requests and their answers."""

from __future__ import annotations

from typing import TypedDict, Unpack

from graftwork.clients.endpoints.parts import Moment, exported, given, one, path_of, query_of
from graftwork.clients.http.calls import SLOW, Call, LinesCall, Request
from graftwork.clients.types.interactions import Erasure, Interaction
from graftwork.clients.types.pages import Page


class InteractionFilter(TypedDict, total=False):
    """Which interactions. ``status``: ok, error or cancelled; ``since`` and ``until`` as for feedback."""

    adapter: str | None
    experiment: str | None
    arm: str | None
    status: str | None
    user: str | None
    key_id: str | None
    since: Moment | None
    until: Moment | None


def list(
    *, after: str | None = None, limit: int | None = None, **which: Unpack[InteractionFilter]
) -> Call[Page[Interaction]]:
    """A page of logged requests and answers, newest first; ``after`` is the last one's id of the page before."""
    query = {**query_of(which), **given(after=after, limit=limit)}
    return Call(request=Request(method="GET", path=path_of("interactions"), query=query), read=one(Page[Interaction]))


def get(id: str) -> Call[Interaction]:
    """A logged request and its answers, with what was said of them."""
    return Call(request=Request(method="GET", path=path_of("interactions", id)), read=one(Interaction))


def export(**which: Unpack[InteractionFilter]) -> LinesCall[Interaction]:
    """All logged requests and answers, oldest first, read while they are iterated."""
    return exported("interactions", which, Interaction)


def erase(*, user: str) -> Call[Erasure]:
    """Erase what a user left behind: interactions, and the words of feedback. Says which versions learned from it."""
    request = Request(method="DELETE", path=path_of("interactions"), query={"user": user}, read_timeout=SLOW)
    return Call(request=request, read=one(Erasure))
