"""Rows that wait on this disk while the database is away: durable when they were kept, in a SQLite file of their own.

Whoever delivers them removes them afterwards. So a row may be delivered again, as after a kill in between, and needs a
key by which that is recognised.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from sqlalchemy import Column, Integer, MetaData, Table, Text, UniqueConstraint, delete, insert, select

from graftwork.adapters.errors import Unavailable
from graftwork.adapters.storage.database import UNREACHABLE, Database

SpoolKind = Literal["interaction", "feedback"]

MAX_BYTES: Final = 256 << 20


@dataclass(frozen=True)
class WaitingRow:
    """A row that waits. ``number`` grows in the order in which rows were kept."""

    number: int
    kind: SpoolKind
    body: Mapping[str, Any]


_waiting = Table(
    "waiting",
    MetaData(),
    Column("number", Integer, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("body", Text, nullable=False),
    UniqueConstraint("kind", "key"),
)


class Spool:
    """The rows of one home that wait for the database. Safe to use from several threads and processes.

    Args:
        path: Its file, which is created with the first row.
        max_bytes: How large it may become.
    """

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._file = Database(path)

    def keep(self, kind: SpoolKind, bodies: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
        """Keep rows; they are durable when this returns.

        Args:
            kind: Of all of them.
            bodies: What JSON can hold, by key. A row whose key is there already stays as it is.

        Returns:
            The rows as they are kept.

        Raises:
            Unavailable: There is no room.
        """
        with self._file.write() as connection:
            _waiting.create(connection, checkfirst=True)
            query = select(_waiting.c.key, _waiting.c.body).where(_waiting.c.kind == kind, _waiting.c.key.in_(bodies))
            known = {row.key: json.loads(row.body) for row in connection.execute(query)}
            new = [
                {"kind": kind, "key": key, "body": json.dumps(body)} for key, body in bodies.items() if key not in known
            ]
            pages, page_bytes, free = (
                int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())
                for name in ("page_count", "page_size", "freelist_count")
            )
            if (pages - free) * page_bytes + sum(len(row["body"]) for row in new) > self._max_bytes:
                raise Unavailable(
                    "the database cannot be reached, and there is no room left to keep this until it is back: "
                    "send it again when the server is ready",
                    code=UNREACHABLE,
                )
            if new:
                connection.execute(insert(_waiting), new)
        return {**bodies, **known}

    def oldest(self, limit: int) -> list[WaitingRow]:
        """The rows that have waited longest, at most ``limit``."""
        if not self._path.exists():
            return []
        with self._file.read() as connection:
            rows = connection.execute(select(_waiting).order_by(_waiting.c.number).limit(limit)).all()
        return [WaitingRow(row.number, row.kind, json.loads(row.body)) for row in rows]

    def remove(self, rows: Sequence[WaitingRow]) -> None:
        """Remove rows that were delivered."""
        with self._file.write() as connection:
            connection.execute(delete(_waiting).where(_waiting.c.number.in_([row.number for row in rows])))
