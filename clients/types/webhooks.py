"""Webhooks and their deliveries."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Webhook:
    """An address that is told what happens; no ``events``: of all. ``secret`` is shown once, when it is created."""

    id: str
    url: str
    events: tuple[str, ...]
    created_by: str
    created_at: datetime
    deleted: bool = False
    secret: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class WebhookDelivery:
    """An event for a webhook: ``waiting`` until ``next_at``, ``delivered``, or ``failed`` for good."""

    id: int
    event: str
    type: str
    at: datetime
    state: str
    attempts: int
    next_at: datetime | None = None
    delivered_at: datetime | None = None
    error: str | None = None
