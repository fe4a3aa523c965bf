"""What is said of answers."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import TypedDict, Unpack

from graftwork.clients.endpoints.parts import Timestamp, export_call, path_of, query_of, reader_of, without_none
from graftwork.clients.http.calls import Call, CallRequest, CallResponse, LinesCall
from graftwork.clients.http.wire import parse
from graftwork.clients.types.feedback import Feedback, SentFeedback
from graftwork.clients.types.pages import Page


class FeedbackFilter(TypedDict, total=False):
    """Which feedback. ``kind``: thumb, score, correction, preferred_over, comment or metadata; ``since`` is included,
    ``until`` is not: a moment with a time zone, unix seconds, or ISO 8601."""

    interaction_id: str | None
    adapter: str | None
    experiment: str | None
    arm: str | None
    kind: str | None
    user: str | None
    since: Timestamp | None
    until: Timestamp | None


def send(
    interaction_id: str,
    *,
    thumb: str | None = None,
    score: float | None = None,
    correction: str | None = None,
    preferred_over: str | None = None,
    comment: str | None = None,
    metadata: Mapping[str, str] | None = None,
    choice: int | None = None,
    preferred_over_choice: int | None = None,
    user: str | None = None,
    idempotency_key: str | None = None,
) -> Call[SentFeedback]:
    """Say something of an answer, by its ``id``, now or at any later time.

    At least one of: ``thumb`` (up, down), ``score`` (0 to 1), ``correction`` (what the answer should have been),
    ``preferred_over`` (the id of an answer to the same prompt that was worse), ``comment``, ``metadata``. ``choice`` is
    its index where there were several. Sent again with the same ``idempotency_key`` it is not kept twice; without one,
    the call makes one up, so that it may try again by itself when a connection breaks.
    """
    said = without_none(
        thumb=thumb,
        score=score,
        correction=correction,
        preferred_over=preferred_over,
        comment=comment,
        metadata=metadata,
        choice=choice,
        preferred_over_choice=preferred_over_choice,
        user=user,
    )
    request = CallRequest(
        method="POST",
        path=path_of("feedback"),
        json={"interaction_id": interaction_id, **said, "idempotency_key": idempotency_key or uuid.uuid4().hex},
        idempotent=True,
    )
    return Call(request=request, read=_read_sent)


def list(
    *, after: int | None = None, limit: int | None = None, **which: Unpack[FeedbackFilter]
) -> Call[Page[Feedback]]:
    """A page of feedback, newest first; ``after`` is the last one's id of the page before."""
    query = {**query_of(which), **without_none(after=after, limit=limit)}
    return Call(
        request=CallRequest(method="GET", path=path_of("feedback"), query=query), read=reader_of(Page[Feedback])
    )


def export(**which: Unpack[FeedbackFilter]) -> LinesCall[Feedback]:
    """All feedback, oldest first, read while it is iterated."""
    return export_call("feedback", which, Feedback)


def _read_sent(reply: CallResponse) -> SentFeedback:
    return parse(SentFeedback, {**parse(dict, reply.json()), "created": reply.status == 201})
