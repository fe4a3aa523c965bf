"""Rows in the order of a number that grows: the newest page of them, or all in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Row, Select

from graftwork.adapters.storage.database import Database, Page, check_limit

T = TypeVar("T")

AnyRow = Row[*tuple[Any, ...]]


def newest_page(
    database: Database,
    query: Select[*tuple[Any, ...]],
    number: ColumnElement[int],
    make: Callable[[AnyRow], T],
    *,
    after: int | None,
    limit: int,
) -> Page[T]:
    """A page of a query's rows, newest first.

    Args:
        database: Where to read.
        query: Selects the rows, without an order.
        number: The column that orders them.
        make: Makes an entry of a row.
        after: The last number of the page before.
        limit: 1 to 100.

    Raises:
        InvalidRequest: ``limit`` is another number.
    """
    check_limit(limit)
    query = query.order_by(number.desc()).limit(limit + 1)
    # A cursor beyond the database's integers means the newest end.
    if after is not None and after < 2**63:
        query = query.where(number < after)
    with database.read() as connection:
        return Page.of([make(row) for row in connection.execute(query)], limit)


def rows_in_order(
    database: Database,
    query: Select[*tuple[Any, ...]],
    number: ColumnElement[int],
    *,
    after: int = 0,
    at_once: int,
) -> Iterator[AnyRow]:
    """All rows of a query, oldest first, read in batches: nothing is held open while they are used.

    Args:
        database: Where to read.
        query: Selects the rows, the column of their number among others, without an order.
        number: The column that orders them.
        after: Begin behind this number.
        at_once: Rows of a batch.
    """
    query = query.order_by(number).limit(at_once)
    while True:
        with database.read() as connection:
            rows = connection.execute(query.where(number > after)).all()
        yield from rows
        if len(rows) < at_once:
            return
        after = rows[-1]._mapping[number]
