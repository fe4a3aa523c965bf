"""Leases in the database: work that only one process may do at a time, until when, with fencing.

The holder of a lease renews it well before it expires; when its process dies nobody renews it, and after at most the
lease's seconds another process gets it. A process that was stopped for longer than that finds its lease lost when it
renews: so its work must tolerate that another one does it too, or be written in one transaction with ``Leases.check``.
The time is the database's (``Database.now``): servers that share a database need not agree about it.

A clock that jumps does no harm either. Ahead: a lease may be taken from a living holder, who finds out, as above. Back:
a lease with far more time left than anybody asks for is of a holder who died before the jump, and is free.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, Column, Connection, Named, Row, Table, Text, TypedColumns, insert, select, update

from graftwork.adapters.errors import Conflict
from graftwork.adapters.storage.database import Database, UtcDateTime, schema


@dataclass(frozen=True, kw_only=True)
class Lease:
    """A lease as its holder has it. ``token`` grows with every change of the holder, which reveals a stale one."""

    name: str
    owner: str
    token: int
    acquired_at: datetime
    expires_at: datetime


class _LeaseColumns(TypedColumns):
    name: Named[str] = Column(Text, primary_key=True)
    owner: Named[str | None] = Column(Text)
    token: Named[int] = Column(BigInteger)
    acquired_at = Column(UtcDateTime, nullable=False)
    expires_at = Column(UtcDateTime, nullable=False)


_leases = Table("leases", schema, _LeaseColumns)


class Leases:
    """The leases of one database. An ``owner`` is a name that is unique to its process."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def acquire(self, name: str, owner: str, *, seconds: float) -> Lease | None:
        """Take a lease that is free or expired. Its holder keeps it, with its token.

        Args:
            name: The lease's.
            owner: The caller's.
            seconds: How long it holds from now unless renewed.

        Returns:
            The lease; ``None`` while another owner holds it.
        """
        # Usually another owner holds it: a read does not block writers.
        with self._database.read() as connection:
            now = self._database.now(connection)
            if _is_others(_held(_row(connection, name), now), owner, now, seconds):
                return None
        with self._database.write() as connection:
            now = self._database.now(connection)
            row = _row(connection, name)
            held = _held(row, now)
            if _is_others(held, owner, now, seconds):
                return None
            mine = held if held is not None and held.owner == owner else None
            lease = Lease(
                name=name,
                owner=owner,
                token=mine.token if mine else (row.token if row else 0) + 1,
                acquired_at=mine.acquired_at if mine else now,
                expires_at=now + timedelta(seconds=seconds),
            )
            values = {key: value for key, value in vars(lease).items() if key != "name"}
            if row is None:
                connection.execute(insert(_leases).values(name=name, **values))
            else:
                connection.execute(update(_leases).where(_leases.c.name == name).values(values))
            return lease

    def renew(self, lease: Lease, *, seconds: float) -> Lease | None:
        """Hold a lease for ``seconds`` from now; also one that has expired, if nobody else took it.

        Returns:
            The renewed lease; ``None`` if another owner has it.
        """
        with self._database.write() as connection:
            expires_at = self._database.now(connection) + timedelta(seconds=seconds)
            mine = (_leases.c.name == lease.name, _leases.c.token == lease.token, _leases.c.owner == lease.owner)
            changed = connection.execute(update(_leases).where(*mine).values(expires_at=expires_at)).rowcount
        return Lease(**{**vars(lease), "expires_at": expires_at}) if changed else None

    def release(self, lease: Lease) -> None:
        """Give a lease up. Nothing happens if another owner has it."""
        with self._database.write() as connection:
            mine = (_leases.c.name == lease.name, _leases.c.token == lease.token)
            connection.execute(update(_leases).where(*mine).values(owner=None))

    def holder(self, name: str) -> Lease | None:
        """The lease as its current holder has it, if there is one."""
        with self._database.read() as connection:
            return _held(_row(connection, name), self._database.now(connection))

    def check(self, connection: Connection, lease: Lease) -> None:
        """Check a lease in a write transaction, before anything is written.

        Raises:
            Conflict: Another owner has it.
        """
        row = _row(connection, lease.name)
        if row is None or (row.token, row.owner) != (lease.token, lease.owner):
            raise Conflict(f"the lease {lease.name!r} has passed to another process: start over")


def _row(connection: Connection, name: str) -> Row[*tuple[Any, ...]] | None:
    return connection.execute(select(_leases).where(_leases.c.name == name)).one_or_none()


def _held(row: Row[*tuple[Any, ...]] | None, now: datetime) -> Lease | None:
    if row is None or row.owner is None or row.expires_at <= now:
        return None
    return Lease(
        name=row.name, owner=row.owner, token=row.token, acquired_at=row.acquired_at, expires_at=row.expires_at
    )


def _is_others(held: Lease | None, owner: str, now: datetime, seconds: float) -> bool:
    """Whether another owner than ``owner``, who asks for ``seconds``, holds a lease.

    One that has far longer left was taken before the clock was set back. A holder that lives renews it, which
    shortens it: this one is dead, and must not be waited for until the wrong time.
    """
    if held is None or held.owner == owner:
        return False
    return held.expires_at <= now + timedelta(seconds=2 * seconds)


Fence = Callable[[Connection], None]
"""Called in a write transaction before anything is written; an exception undoes it. For ``Leases.check``."""
