"""The outbox of webhooks: an event is stored in the transaction that makes it true, and sent later.

So no event is lost and none is sent of what did not happen. One may be sent twice, under the same id.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import JSON, BigInteger, Column, Connection, Integer, Named, Table, Text, TypedColumns, insert, select

from graftwork.adapters.storage.database import UtcDateTime, schema

EVENT_TYPES: Final = (
    *(f"fine_tuning.job.{status}" for status in ("succeeded", "failed", "cancelled")),
    *(f"round.{state}" for state in ("collecting", "training", "gating", "experimenting", "awaiting_decision")),
    *(f"round.{state}" for state in ("promoted", "set_aside", "failed", "cancelled", "undone")),
    "webhook.test",
)
"""What webhooks can be told. The names of jobs' events are OpenAI's."""


class _WebhookColumns(TypedColumns):
    id: Named[str] = Column(Text, primary_key=True)
    url: Named[str] = Column(Text)
    secret: Named[str] = Column(Text)
    events = Column(JSON, nullable=False)
    created_by: Named[str] = Column(Text)
    created_at = Column(UtcDateTime, nullable=False)


class _DeliveryColumns(TypedColumns):
    number: Named[int] = Column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    webhook: Named[str] = Column(Text)
    event: Named[str] = Column(Text)
    type: Named[str] = Column(Text)
    body: Named[str] = Column(Text)
    at = Column(UtcDateTime, nullable=False)
    state: Named[str] = Column(Text)
    attempts: Named[int] = Column(Integer)
    next_at = Column(UtcDateTime, nullable=True)
    delivered_at = Column(UtcDateTime, nullable=True)
    error: Named[str | None] = Column(Text)


webhooks_table: Final = Table("webhooks", schema, _WebhookColumns)
deliveries_table: Final = Table("webhook_deliveries", schema, _DeliveryColumns)


def add_event(connection: Connection, type: str, data: Mapping[str, Any]) -> None:
    """Store an event for every webhook that is to be told of it.

    Args:
        connection: The write transaction that makes it true.
        type: One of ``EVENT_TYPES``.
        data: What happened. Ids and states, and nothing that a user wrote.
    """
    rows = connection.execute(select(webhooks_table.c.id, webhooks_table.c.events)).all()
    told = [row.id for row in rows if not row.events or type in row.events]
    store_deliveries(connection, told, type, data)


def store_deliveries(connection: Connection, webhooks: list[str], type: str, data: Mapping[str, Any]) -> None:
    """Store an event for these webhooks, whatever they want to be told of."""
    if not webhooks:
        return
    now, event = datetime.now(UTC), f"evt_{secrets.token_hex(16)}"
    body = {"object": "event", "id": event, "type": type, "created_at": int(now.timestamp()), "data": dict(data)}
    text = json.dumps(body, ensure_ascii=False)
    delivery = {
        "event": event,
        "type": type,
        "body": text,
        "at": now,
        "state": "waiting",
        "attempts": 0,
        "next_at": now,
    }
    connection.execute(insert(deliveries_table), [{"webhook": webhook, **delivery} for webhook in webhooks])
