"""Webhooks in the database, and the deliveries that wait for them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from sqlalchemy import Row, delete, func, insert, select, update

from graftwork.adapters import names
from graftwork.adapters.access import audit
from graftwork.adapters.errors import Conflict, InvalidRequest, NotFound
from graftwork.adapters.storage.database import Database, Page, check_limit
from graftwork.adapters.storage.leases import Fence
from graftwork.adapters.webhooks.addresses import check_url
from graftwork.adapters.webhooks.outbox import EVENT_TYPES, deliveries_table, store_deliveries, webhooks_table
from graftwork.adapters.webhooks.signature import new_secret

MAX_WEBHOOKS: Final = 20

RETRY_SECONDS: Final = (5, 30, 120, 600, 1800, 3600, 7200, 14_400, 28_800, 57_600, 86_400)
"""The pauses after failed attempts. After the last of them a delivery is given up: in all some two and a half days."""

KEPT_DAYS: Final = 30
"""How long deliveries that have ended are kept."""

DeliveryState = Literal["waiting", "delivered", "failed"]


@dataclass(frozen=True, kw_only=True)
class Webhook:
    """An address that is told what happens.

    Attributes:
        url: Where to.
        secret: What requests are signed with.
        events: The types of events; none given: all.
    """

    id: str
    url: str
    secret: str = field(repr=False)
    events: tuple[str, ...]
    created_by: str
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """One event for one webhook.

    Attributes:
        number: In the order of events.
        event: The event's id.
        body: What is sent, JSON.
        at: When it happened.
        next_at: When it is tried next; ``None``: not again.
        error: Why the last attempt failed.
    """

    number: int
    webhook: str
    event: str
    type: str
    body: str
    at: datetime
    state: DeliveryState
    attempts: int
    next_at: datetime | None
    delivered_at: datetime | None
    error: str | None


class Webhooks:
    """The webhooks of one database.

    Args:
        database: Where they are stored.
        allow_private: Whether they may have addresses that are not public.
        now: The clock, in UTC.
    """

    def __init__(
        self,
        database: Database,
        *,
        allow_private: bool = False,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._database = database
        self.allow_private = allow_private
        self._now = now

    def create(self, url: str, *, events: Sequence[str] = (), actor: str) -> Webhook:
        """Create a webhook with a new secret.

        Raises:
            InvalidRequest: The URL or an event's type cannot be.
            Conflict: There are as many as there may be.
        """
        check_url(url, allow_private=self.allow_private)
        for place, type in enumerate(events):
            if type not in EVENT_TYPES:
                raise InvalidRequest(
                    f"{names.quoted(type)} is no event: there are {', '.join(EVENT_TYPES)}", param=f"events[{place}]"
                )
        webhook = Webhook(
            id=f"webhook-{secrets.token_hex(12)}",
            url=url,
            secret=new_secret(),
            events=tuple(dict.fromkeys(events)),
            created_by=actor,
            created_at=self._now(),
        )
        with self._database.write() as connection:
            if (connection.scalar(select(func.count()).select_from(webhooks_table)) or 0) >= MAX_WEBHOOKS:
                raise Conflict(f"there are {MAX_WEBHOOKS} webhooks already, which is the limit: delete one first")
            audit.made(webhook.id)
            connection.execute(insert(webhooks_table).values(vars(webhook) | {"events": list(webhook.events)}))
        return webhook

    def all(self) -> list[Webhook]:
        """All webhooks, the oldest first."""
        with self._database.read() as connection:
            query = select(webhooks_table).order_by(webhooks_table.c.created_at, webhooks_table.c.id)
            return [_webhook(row) for row in connection.execute(query)]

    def delete(self, id: str) -> Webhook:
        """Delete a webhook; what it was not told yet, it will not be told.

        Raises:
            NotFound: There is none.
        """
        with self._database.write() as connection:
            webhook = _webhook(_require(connection, id))
            connection.execute(delete(deliveries_table).where(deliveries_table.c.webhook == id))
            connection.execute(delete(webhooks_table).where(webhooks_table.c.id == id))
        return webhook

    def test(self, id: str, *, actor: str) -> Webhook:
        """Have a webhook told a ``webhook.test`` event.

        Raises:
            NotFound: There is none.
        """
        with self._database.write() as connection:
            webhook = _webhook(_require(connection, id))
            store_deliveries(connection, [id], "webhook.test", {"id": id, "by": actor})
        return webhook

    def deliveries(self, id: str, *, after: int | None = None, limit: int = 20) -> Page[Delivery]:
        """A page of a webhook's deliveries, newest first.

        Args:
            id: The webhook's.
            after: The last number of the page before.
            limit: 1 to 100.

        Raises:
            NotFound: There is no such webhook.
        """
        check_limit(limit)
        table = deliveries_table
        query = select(table).where(table.c.webhook == id).order_by(table.c.number.desc()).limit(limit + 1)
        if after is not None and after < 2**63:
            query = query.where(table.c.number < after)
        with self._database.read() as connection:
            _require(connection, id)
            return Page.of([Delivery(**row._mapping) for row in connection.execute(query)], limit)

    # -- for the keeper --------------------------------------------------------------------------------------------
    def due(self, *, limit: int = 20) -> dict[Webhook, list[Delivery]]:
        """The deliveries that are to be tried now, by webhook, in the order of their events; ``limit`` of each."""
        table, found = deliveries_table, {}
        with self._database.read() as connection:
            for row in connection.execute(select(webhooks_table)).all():
                mine = (table.c.webhook == row.id, table.c.state == "waiting", table.c.next_at <= self._now())
                query = select(table).where(*mine).order_by(table.c.number).limit(limit)
                if deliveries := [Delivery(**each._mapping) for each in connection.execute(query)]:
                    found[_webhook(row)] = deliveries
        return found

    def record(self, delivery: Delivery, error: str | None, *, fence: Fence) -> None:
        """Store what came of an attempt.

        Args:
            delivery: The delivery.
            error: Why it failed; ``None``: it did not.
            fence: Called with the connection, in the transaction; may raise.
        """
        now, attempts = self._now(), delivery.attempts + 1
        if error is None:
            change: dict[str, Any] = {"state": "delivered", "delivered_at": now, "next_at": None}
        elif attempts <= len(RETRY_SECONDS):
            change = {"next_at": now + timedelta(seconds=RETRY_SECONDS[attempts - 1])}
        else:
            change = {"state": "failed", "next_at": None}
        with self._database.write() as connection:
            fence(connection)
            table = deliveries_table.c
            # It may have been deleted with its webhook meanwhile.
            this = (table.number == delivery.number) & (table.event == delivery.event)
            values = {"attempts": attempts, "error": error, **change}
            connection.execute(update(deliveries_table).where(this, table.webhook == delivery.webhook).values(values))

    def clean(self, *, fence: Fence) -> None:
        """Delete deliveries that ended long ago."""
        old = self._now() - timedelta(days=KEPT_DAYS)
        table = deliveries_table.c
        with self._database.write() as connection:
            fence(connection)
            connection.execute(delete(deliveries_table).where(table.state != "waiting", table.at < old))


def _require(connection: Any, id: str) -> Row[*tuple[Any, ...]]:
    row: Row[*tuple[Any, ...]] | None = connection.execute(
        select(webhooks_table).where(webhooks_table.c.id == id)
    ).one_or_none()
    if row is None:
        raise NotFound(
            f"there is no webhook {names.quoted(id)}: graftwork webhooks list shows those there are",
            code="webhook_not_found",
        )
    return row


def _webhook(row: Row[*tuple[Any, ...]]) -> Webhook:
    return Webhook(**{**row._mapping, "events": tuple(row.events)})
