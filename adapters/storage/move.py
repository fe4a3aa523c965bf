"""A database, copied whole into an empty one: from the file of a home to PostgreSQL."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from sqlalchemy import Connection, MetaData, Table, func, insert, inspect, select, text

from graftwork.adapters.errors import ConfigurationError, Conflict
from graftwork.adapters.storage import settings
from graftwork.adapters.storage.database import Database, migrate, schema

ROWS_AT_ONCE = 1000


def move(source: Database, target: Database) -> Mapping[str, int]:
    """Copy every row, in one transaction, and count them there. The source stays as it is.

    Only the id of the database is new: a home or a bucket then belongs to one of the two.

    Args:
        source: A SQLite file that nobody uses meanwhile.
        target: A PostgreSQL database without data.

    Returns:
        How many rows each table has, in the order in which they were copied.

    Raises:
        Conflict: The target has data, or the tables of both differ.
        ConfigurationError: One of the two cannot be opened, or is of the wrong kind.
    """
    if not source.is_sqlite or target.is_sqlite:
        raise ConfigurationError("a home's SQLite file is moved to PostgreSQL: give a URL like postgresql://…")
    migrate(source)
    migrate(target)
    with source.write() as reading, target.write() as writing:
        writing.execute(text("SET LOCAL statement_timeout = 0"))
        tables = _tables(reading)
        for table in tables:
            if _count(writing, table):
                raise Conflict(f"{target} is in use: its table {table.name} has rows. Give an empty database")
        for table in tables:
            # What triggers would do has happened already, or is history.
            writing.execute(text(f"ALTER TABLE {table.name} DISABLE TRIGGER USER"))
            _copy(reading, writing, table)
            writing.execute(text(f"ALTER TABLE {table.name} ENABLE TRIGGER USER"))
        _continue_numbers(reading, writing)
        writing.execute(text("UPDATE topics SET version = version + 1"))
        counts = {table.name: _count(writing, table) for table in tables}
        for table in tables:
            if (expected := _count(reading, table)) != counts[table.name]:
                raise Conflict(f"{table.name} has {expected} rows, and {counts[table.name]} came over: nothing is kept")
        settings.replace(writing, settings.DATABASE_ID, secrets.token_hex(32))
    return counts


def _tables(connection: Connection) -> list[Table]:
    """All tables, each after those that its rows refer to."""
    reflected = MetaData()
    reflected.reflect(connection)
    names = [table.name for table in reflected.sorted_tables if table.name not in ("alembic_version", "topics")]
    if unknown := set(names) ^ (set(schema.tables) - {"topics"}):
        raise Conflict(f"these tables are not known here: {', '.join(sorted(unknown))}")
    return [schema.tables[name] for name in names]


def _copy(reading: Connection, writing: Connection, table: Table) -> None:
    # By keys: what refers to a row of its own table, as a version to its parent, comes later.
    rows = reading.execution_options(yield_per=ROWS_AT_ONCE).execute(select(table).order_by(*table.primary_key))
    for part in rows.mappings().partitions():
        writing.execute(insert(table), [dict(row) for row in part])


def _continue_numbers(reading: Connection, writing: Connection) -> None:
    """Let numbers go on where they were, also after rows that were deleted."""
    for name, last in reading.execute(text("SELECT name, seq FROM sqlite_sequence")).all():
        (column,) = inspect(writing).get_pk_constraint(name)["constrained_columns"]
        writing.execute(
            text("SELECT setval(pg_get_serial_sequence(:name, :column), :last)"),
            {"name": name, "column": column, "last": max(last, 1)},
        )


def _count(connection: Connection, table: Table) -> int:
    return connection.execute(select(func.count()).select_from(table)).scalar_one()
