"""The audit log: every change that a request made, by whom, from where, and how it ended. It is append-only.

A request that may change something carries a ``Change`` with it. The first transaction that is written while it is
handled, in whatever thread, also writes the change's row: so what was changed is in the log, and what is in the log was
changed. A request that was refused, or failed, gets its row when it ends. Rows hold no bodies: no secret, no prompt,
and none of what users said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Integer,
    Named,
    Row,
    Table,
    Text,
    TypedColumns,
    insert,
    or_,
    select,
)

from graftwork.adapters.storage.database import Database, Page, UtcDateTime, schema
from graftwork.adapters.storage.paging import newest_page, rows_in_order

DONE: Final = "done"
"""The outcome of a change that was made; that of one that was not is the status of its answer."""

MAX_TARGET_CHARS: Final = 512
READ_AT_ONCE: Final = 500


@dataclass(slots=True)
class Change:
    """What a request is about to change.

    Attributes:
        actor: The name of the caller's key.
        key_id: Its id.
        action: The operation, by its name in the OpenAPI document.
        target: What it is about: the address without ``/v1/``.
        request_id: The request's.
        remote: The address that it came from.
        made: The id of what is made there.
        written: Whether its row is.
        ended: Whether the request has ended: what is written later is no part of it.
    """

    actor: str
    key_id: str
    action: str
    target: str
    request_id: str | None
    remote: str | None
    made: str | None = None
    written: bool = False
    ended: bool = False


@dataclass(frozen=True, kw_only=True)
class AuditEntry:
    """One row of the log; ``outcome`` is ``DONE`` or the status of the answer, ``key_id`` the caller's key."""

    id: int
    at: datetime
    actor: str
    key_id: str
    action: str
    target: str
    outcome: str
    request_id: str | None
    remote: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditFilter:
    """Selects rows that match all given fields.

    Attributes:
        actor: The name or the id of the caller's key.
        action: The operation.
        target: Of this object, or of one below it: ``adapters/intents`` has ``adapters/intents/aliases/live``.
        since: At this time or later.
        until: Before this time.
    """

    actor: str | None = None
    action: str | None = None
    target: str | None = None
    since: datetime | None = None
    until: datetime | None = None


class _AuditColumns(TypedColumns):
    id: Named[int] = Column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    at = Column(UtcDateTime, nullable=False)
    actor: Named[str] = Column(Text)
    key_id: Named[str] = Column(Text)
    action: Named[str] = Column(Text)
    target: Named[str] = Column(Text)
    outcome: Named[str] = Column(Text)
    request_id: Named[str | None] = Column(Text)
    remote: Named[str | None] = Column(Text)


_audit = Table("audit_log", schema, _AuditColumns)
_current: ContextVar[Change | None] = ContextVar("change", default=None)


def begin(change: Change) -> None:
    """Make ``change`` that of the present context, and of all threads and tasks that it starts."""
    _current.set(change)


@contextmanager
def entered() -> Iterator[None]:
    """Let a change that is begun inside of the block end with it."""
    token = _current.set(None)
    try:
        yield
    finally:
        _current.reset(token)


def made(id: str) -> None:
    """Note that the present change made something with this id. Of several, the last one is what was asked for."""
    change = _current.get()
    if change is not None:
        change.made = id


class AuditLog:
    """The audit log of one database, which from now on writes rows in the transactions of changes.

    Args:
        database: Where it is stored.
        now: The time.
    """

    def __init__(self, database: Database, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._database = database
        self._now = now
        database.before_commit = self._write_current

    def end(self, change: Change, status: int) -> None:
        """Write the row of a change that was not made, or not to its end; durable when this returns."""
        change.ended = True
        if status >= 400 or not change.written:
            outcome = DONE if status < 400 else str(status)
            with self._database.write() as connection:
                self._write(connection, change, outcome)

    def find(
        self, which: AuditFilter = AuditFilter(), *, after: int | None = None, limit: int = 20
    ) -> Page[AuditEntry]:
        """A page of rows, newest first.

        Args:
            which: Selects rows.
            after: The last id of the page before.
            limit: 1 to 100.
        """
        query = select(_audit).where(*_conditions(which))
        return newest_page(self._database, query, _audit.c.id, _entry, after=after, limit=limit)

    def each(self, which: AuditFilter = AuditFilter()) -> Iterator[AuditEntry]:
        """All rows, oldest first, read in batches."""
        query = select(_audit).where(*_conditions(which))
        return map(_entry, rows_in_order(self._database, query, _audit.c.id, at_once=READ_AT_ONCE))

    def _write_current(self, connection: Connection) -> None:
        change = _current.get()
        if change is not None and not (change.written or change.ended):
            self._write(connection, change, DONE)
            change.written = True

    def _write(self, connection: Connection, change: Change, outcome: str) -> None:
        target = change.target if change.made is None else f"{change.target}/{change.made}"
        connection.execute(
            insert(_audit).values(
                at=self._now(),
                actor=change.actor,
                key_id=change.key_id,
                action=change.action,
                target=_printable(target),
                outcome=outcome,
                request_id=change.request_id,
                remote=change.remote,
            )
        )


def _printable(target: str) -> str:
    """An address as every database can store it."""
    return "".join(character if character.isprintable() else "�" for character in target[:MAX_TARGET_CHARS])


def _conditions(which: AuditFilter) -> list[ColumnElement[bool]]:
    columns = _audit.c
    conditions: list[ColumnElement[bool]] = []
    if which.actor is not None:
        conditions.append(or_(columns.actor == which.actor, columns.key_id == which.actor))
    if which.action is not None:
        conditions.append(columns.action == which.action)
    if which.target is not None:
        below = columns.target.startswith(f"{which.target}/", autoescape=True)
        conditions.append(or_(columns.target == which.target, below))
    if which.since is not None:
        conditions.append(columns.at >= which.since)
    if which.until is not None:
        conditions.append(columns.at < which.until)
    return conditions


def _entry(row: Row[*tuple[Any, ...]]) -> AuditEntry:
    return AuditEntry(**row._mapping)
