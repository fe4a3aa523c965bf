"""What keys and adapters used: requests and tokens per day. Budgets are counted from it, so it outlives the process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date

from sqlalchemy import BigInteger, Column, Named, Table, Text, TypedColumns, insert, select, update

from graftwork.adapters.storage.database import Database, schema


class _UsageColumns(TypedColumns):
    subject: Named[str] = Column(Text, primary_key=True)
    day: Named[str] = Column(Text, primary_key=True)
    requests: Named[int] = Column(BigInteger)
    tokens: Named[int] = Column(BigInteger)


_usage = Table("usage", schema, _UsageColumns)


@dataclass(frozen=True, slots=True)
class Usage:
    """Requests, and tokens of their prompts and answers."""

    requests: int = 0
    tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.requests + other.requests, self.tokens + other.tokens)


DailyUsage = Mapping[tuple[str, date], Usage]
"""Usage by its subject, the id of a key or ``adapter:NAME``, and the day in UTC."""


class UsageLedger:
    """The usage that is stored in one database, by any number of processes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, used: DailyUsage) -> None:
        """Add to what is stored, in one transaction; it is durable when this returns."""
        if not used:
            return
        with self._database.write() as connection:
            for (subject, day), more in used.items():
                this = (_usage.c.subject == subject) & (_usage.c.day == day.isoformat())
                sums = {"requests": _usage.c.requests + more.requests, "tokens": _usage.c.tokens + more.tokens}
                if connection.execute(update(_usage).where(this).values(sums)).rowcount == 0:
                    row = {"subject": subject, "day": day.isoformat()}
                    connection.execute(insert(_usage).values(**row, requests=more.requests, tokens=more.tokens))

    def since(self, first: date, *, subject: str | None = None) -> dict[tuple[str, date], Usage]:
        """What is stored of a day and later ones, of all subjects or of one."""
        query = select(_usage).where(_usage.c.day >= first.isoformat())
        if subject is not None:
            query = query.where(_usage.c.subject == subject)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return {(row.subject, date.fromisoformat(row.day)): Usage(row.requests, row.tokens) for row in rows}
