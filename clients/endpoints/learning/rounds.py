"""Rounds of learning."""

from __future__ import annotations

from graftwork.clients.endpoints.parts import path_of, reader_of, without_none
from graftwork.clients.http.calls import Call, CallRequest
from graftwork.clients.types.learning.rounds import Round, RoundPlan
from graftwork.clients.types.pages import Page


def begin(adapter: str) -> Call[Round]:
    """Begin the next round of an adapter with a learning policy now, whether it is due or not.

    Raises:
        BadRequestError: if there is no such adapter, or it has no policy.
        ConflictError: if a round is under way, or there is nothing to learn from.
    """
    request = CallRequest(method="POST", path=path_of("rounds"), json={"adapter": adapter})
    return Call(request=request, read=reader_of(Round))


def plan(adapter: str) -> Call[RoundPlan]:
    """Get what the next round of an adapter would be; nothing begins."""
    request = CallRequest(method="GET", path=path_of("adapters", adapter, "next_round"))
    return Call(request=request, read=reader_of(RoundPlan))


def list(
    *, adapter: str | None = None, state: str | None = None, after: str | None = None, limit: int = 20
) -> Call[Page[Round]]:
    """List rounds, newest first.

    Args:
        adapter: the name of their adapter.
        state: their state.
        after: the id of the last round of the page before.
        limit: the size of the page, 1 to 100.
    """
    query = without_none(adapter=adapter, state=state, after=after, limit=limit)
    return Call(request=CallRequest(method="GET", path=path_of("rounds"), query=query), read=reader_of(Page[Round]))


def get(id: str) -> Call[Round]:
    """Get a round.

    Raises:
        NotFoundError: if there is none.
    """
    return Call(request=CallRequest(method="GET", path=path_of("rounds", id)), read=reader_of(Round))


def undo(id: str, *, reason: str | None = None) -> Call[Round]:
    """Undo a round: cancel its job, stop its experiment, or make the version that it replaced live again.

    Raises:
        NotFoundError: if there is no such round.
        ConflictError: if nothing of it is in effect any more.
    """
    request = CallRequest(method="POST", path=path_of("rounds", id, "undo"), json=without_none(reason=reason))
    return Call(request=request, read=reader_of(Round))
