"""The ledger of splits: on which side each question of an adapter is, written once and for good.

A pure hash of the question would need no table, but it cannot be for good: users hold out files of their own and change
the share that is held out, and a question near to one that was learned has to be on its side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from sqlalchemy import Column, Named, Table, Text, TypedColumns, insert, select

from graftwork.adapters.storage.database import Database, schema


class _SideColumns(TypedColumns):
    adapter: Named[str] = Column(Text, primary_key=True)
    question: Named[str] = Column(Text, primary_key=True)
    side: Named[str] = Column(Text)


_sides = Table("question_sides", schema, _SideColumns)

_AT_ONCE: Final = 1000


class SplitLedger:
    """The sides of all adapters' questions in one database. Questions are hashes, which identify no user."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def sides(self, *adapters: str) -> dict[str, str]:
        """The side of each question that versions of these adapters learned from or held out, by its hash. Where two
        adapters differ, the first one counts."""
        found: dict[str, str] = {}
        with self._database.read() as connection:
            for adapter in adapters:
                query = select(_sides.c.question, _sides.c.side).where(_sides.c.adapter == adapter)
                for question, side in connection.execute(query):
                    found.setdefault(question, side)
        return found

    def record(self, adapter: str, sides: Mapping[str, str]) -> None:
        """Record the sides of questions. Those that are known stay as they are."""
        with self._database.write() as connection:
            known = set(connection.scalars(select(_sides.c.question).where(_sides.c.adapter == adapter)))
            new = [
                {"adapter": adapter, "question": question, "side": side}
                for question, side in sorted(sides.items())
                if question not in known
            ]
            for some in _batches(new):
                connection.execute(insert(_sides), some)


def _batches(rows: list[dict[str, str]]) -> Iterator[list[dict[str, str]]]:
    for start in range(0, len(rows), _AT_ONCE):
        yield rows[start : start + _AT_ONCE]
