"""Interactions: logged requests and their answers."""

from __future__ import annotations

from typing import TypedDict, Unpack

from graftwork.clients.endpoints.parts import Timestamp, export_call, path_of, query_of, reader_of, without_none
from graftwork.clients.http.calls import SLOW_TIMEOUT, Call, CallRequest, LinesCall
from graftwork.clients.types.interactions import ErasureResult, Interaction
from graftwork.clients.types.pages import Page


class InteractionFilter(TypedDict, total=False):
    """A filter for interactions. ``status`` is ok, error or cancelled; ``since`` is inclusive, ``until`` exclusive."""

    adapter: str | None
    experiment: str | None
    arm: str | None
    status: str | None
    user: str | None
    key_id: str | None
    episode: str | None
    since: Timestamp | None
    until: Timestamp | None


def list(
    *, after: str | None = None, limit: int | None = None, **which: Unpack[InteractionFilter]
) -> Call[Page[Interaction]]:
    """List interactions, newest first; ``after`` is the last id of the previous page."""
    query = {**query_of(which), **without_none(after=after, limit=limit)}
    return Call(
        request=CallRequest(method="GET", path=path_of("interactions"), query=query), read=reader_of(Page[Interaction])
    )


def get(id: str) -> Call[Interaction]:
    """Get an interaction with its feedback.

    Raises:
        NotFoundError: if it was not logged, or is erased or expired.
    """
    return Call(request=CallRequest(method="GET", path=path_of("interactions", id)), read=reader_of(Interaction))


def export(**which: Unpack[InteractionFilter]) -> LinesCall[Interaction]:
    """Export all interactions that match a filter, oldest first. They are read while iterating."""
    return export_call("interactions", which, Interaction)


def erase(*, user: str) -> Call[ErasureResult]:
    """Erase a user's interactions and the texts of their feedback, and return which versions learned from them."""
    request = CallRequest(
        method="DELETE", path=path_of("interactions"), query={"user": user}, read_timeout=SLOW_TIMEOUT
    )
    return Call(request=request, read=reader_of(ErasureResult))
