"""Feedback on answers."""

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
    """A filter for feedback. ``kind`` is thumb, score, correction, preferred_over, comment or metadata; ``asked`` is
    whether the answer had been marked for it; ``since`` is inclusive and ``until`` exclusive."""

    interaction_id: str | None
    adapter: str | None
    experiment: str | None
    arm: str | None
    kind: str | None
    user: str | None
    episode: str | None
    asked: bool | None
    since: Timestamp | None
    until: Timestamp | None


def send(
    interaction_id: str | None = None,
    *,
    episode: str | None = None,
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
    """Send feedback on an answer, or on an episode. At least one kind of feedback is required.

    Args:
        interaction_id: the ``id`` of the answer.
        episode: instead: the episode that requests with the same key named; it judges all their answers together.
        thumb: ``up`` or ``down``.
        score: 0 to 1.
        correction: the right answer.
        preferred_over: the id of a worse answer to the same prompt.
        comment: a comment.
        metadata: further feedback; numbers can be metrics of experiments.
        choice: index of the choice, for requests with several.
        preferred_over_choice: index of the worse choice.
        user: the user who gives the feedback.
        idempotency_key: feedback with the same key is stored once. Random by default, so that the client can retry.

    Raises:
        BadRequestError: if the feedback is invalid, or the id is not one of this server.
    """
    fields = without_none(
        interaction_id=interaction_id,
        episode=episode,
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
        json={**fields, "idempotency_key": idempotency_key or uuid.uuid4().hex},
        idempotent=True,
    )
    return Call(request=request, read=_read_sent)


def list(
    *, after: int | None = None, limit: int | None = None, **which: Unpack[FeedbackFilter]
) -> Call[Page[Feedback]]:
    """List feedback, newest first; ``after`` is the last id of the previous page."""
    query = {**query_of(which), **without_none(after=after, limit=limit)}
    return Call(
        request=CallRequest(method="GET", path=path_of("feedback"), query=query), read=reader_of(Page[Feedback])
    )


def export(**which: Unpack[FeedbackFilter]) -> LinesCall[Feedback]:
    """Export all feedback that matches a filter, oldest first. It is read while iterating."""
    return export_call("feedback", which, Feedback)


def _read_sent(reply: CallResponse) -> SentFeedback:
    return parse(SentFeedback, {**parse(dict, reply.json()), "created": reply.status == 201})
