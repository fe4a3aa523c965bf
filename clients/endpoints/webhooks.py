"""Webhooks: addresses that are told what happens."""

from __future__ import annotations

from collections.abc import Sequence

from graftwork.clients.endpoints.parts import path_of, reader_of, without_none
from graftwork.clients.http.calls import Call, CallRequest
from graftwork.clients.types.pages import Page
from graftwork.clients.types.webhooks import Webhook, WebhookDelivery


def create(url: str, *, events: Sequence[str] = ()) -> Call[Webhook]:
    """Create a webhook; its secret is in this answer alone.

    Args:
        url: where events are sent.
        events: the types of events that it is told of; all by default.

    Raises:
        BadRequestError: if the URL or a type cannot be.
    """
    body = {"url": url, "events": [*events]}
    return Call(request=CallRequest(method="POST", path=path_of("webhooks"), json=body), read=reader_of(Webhook))


def list() -> Call[Page[Webhook]]:
    """List all webhooks, without their secrets."""
    return Call(request=CallRequest(method="GET", path=path_of("webhooks")), read=reader_of(Page[Webhook]))


def delete(id: str) -> Call[Webhook]:
    """Delete a webhook.

    Raises:
        NotFoundError: if there is none.
    """
    return Call(request=CallRequest(method="DELETE", path=path_of("webhooks", id)), read=reader_of(Webhook))


def test(id: str) -> Call[Webhook]:
    """Have a webhook told a ``webhook.test`` event.

    Raises:
        NotFoundError: if there is none.
    """
    return Call(request=CallRequest(method="POST", path=path_of("webhooks", id, "test")), read=reader_of(Webhook))


def deliveries(id: str, *, after: int | None = None, limit: int = 20) -> Call[Page[WebhookDelivery]]:
    """List what a webhook was told or will be, newest first.

    Args:
        id: the webhook.
        after: the id of the last delivery of the page before.
        limit: the size of the page, 1 to 100.
    """
    request = CallRequest(
        method="GET", path=path_of("webhooks", id, "deliveries"), query=without_none(after=after, limit=limit)
    )
    return Call(request=request, read=reader_of(Page[WebhookDelivery]))
