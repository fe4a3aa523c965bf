"""Named values in the database, the same for all processes of a server: generated secrets, and pending work."""

from __future__ import annotations

import secrets as randomness
from datetime import UTC, datetime

from sqlalchemy import Column, Connection, Named, Table, Text, TypedColumns, delete, insert, select

from graftwork.adapters.storage.database import Database, UtcDateTime, schema


class _SettingColumns(TypedColumns):
    name: Named[str] = Column(Text, primary_key=True)
    value: Named[str] = Column(Text)
    created_at = Column(UtcDateTime, nullable=False)


_settings = Table("settings", schema, _SettingColumns)

INTERACTION_IDS = "interaction-ids"
"""The secret under which the ids of answers are signed."""

DATABASE_ID = "database-id"
"""The id of the database, by which homes and buckets are tied to it (``database_id``)."""


def secret(database: Database, name: str) -> bytes:
    """32 random bytes, generated the first time and stored: all processes get the same."""
    query = select(_settings.c.value).where(_settings.c.name == name)
    with database.read() as connection:
        stored = connection.scalar(query)
    if stored is None:
        with database.write() as connection:
            # Another process may have been first.
            stored = connection.scalar(query)
            if stored is None:
                stored = randomness.token_hex(32)
                connection.execute(insert(_settings).values(name=name, value=stored, created_at=datetime.now(UTC)))
    return bytes.fromhex(stored)


def put(connection: Connection, name: str, value: str) -> None:
    """Store ``value`` under a new name, in the transaction of ``connection``."""
    connection.execute(insert(_settings).values(name=name, value=value, created_at=datetime.now(UTC)))


def replace(connection: Connection, name: str, value: str) -> None:
    """Store ``value`` in place of what the name had, in the transaction of ``connection``."""
    connection.execute(delete(_settings).where(_settings.c.name == name))
    put(connection, name, value)


def find_by_prefix(database: Database, prefix: str) -> dict[str, str]:
    """Values whose names begin with ``prefix``, the oldest first."""
    query = select(_settings.c.name, _settings.c.value).where(_settings.c.name.startswith(prefix, autoescape=True))
    with database.read() as connection:
        return {row.name: row.value for row in connection.execute(query.order_by(_settings.c.created_at))}


def remove(database: Database, name: str) -> None:
    """Remove a value, if it is there."""
    with database.write() as connection:
        connection.execute(delete(_settings).where(_settings.c.name == name))
