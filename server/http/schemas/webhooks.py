"""The JSON of answers: webhooks and their deliveries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NotRequired

from typing_extensions import TypedDict


class WebhookObject(TypedDict):
    """A webhook; ``events`` empty: it is told of all. ``secret`` is shown once, when it is created."""

    object: Literal["webhook"]
    id: str
    url: str
    events: Sequence[str]
    created_by: str
    created_at: float
    deleted: NotRequired[bool]
    secret: NotRequired[str]


class WebhookDeliveryObject(TypedDict):
    """An event for a webhook. ``next_at``: when it is tried next; ``error``: why the last attempt failed."""

    object: Literal["webhook.delivery"]
    id: int
    event: str
    type: str
    at: float
    state: Literal["waiting", "delivered", "failed"]
    attempts: int
    next_at: float | None
    delivered_at: float | None
    error: str | None
