"""The table of rounds: its rows as records, and the events of their changes."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Connection,
    Integer,
    Named,
    Row,
    Table,
    Text,
    TypedColumns,
    insert,
    select,
    update,
)

from graftwork.adapters import names
from graftwork.adapters.access import audit, scope
from graftwork.adapters.errors import NotFound
from graftwork.adapters.learning.gate_results import GateSummary
from graftwork.adapters.learning.rounds.round import Round, RoundDecision
from graftwork.adapters.storage.database import UtcDateTime, schema
from graftwork.adapters.webhooks.outbox import add_event


class _RoundColumns(TypedColumns):
    id: Named[str] = Column(Text, primary_key=True)
    adapter: Named[str] = Column(Text)
    number: Named[int] = Column(Integer)
    state: Named[str] = Column(Text)
    reason: Named[str | None] = Column(Text)
    control: Named[bool] = Column(Boolean)
    continues: Named[str | None] = Column(Text)
    live: Named[str] = Column(Text)
    judgements = Column(JSON, nullable=False)
    policy = Column(JSON, nullable=False)
    job: Named[str] = Column(Text)
    data_digest: Named[str | None] = Column(Text)
    rows = Column(JSON(none_as_null=True), nullable=True)
    candidate: Named[str | None] = Column(Text)
    gates = Column(JSON(none_as_null=True), nullable=True)
    experiment: Named[str | None] = Column(Text)
    decision = Column(JSON(none_as_null=True), nullable=True)
    created_by: Named[str] = Column(Text)
    created_at = Column(UtcDateTime, nullable=False)
    updated_at = Column(UtcDateTime, nullable=False)
    ended_at = Column(UtcDateTime, nullable=True)


rounds_table = Table("rounds", schema, _RoundColumns)


def round_of(row: Row[*tuple[Any, ...]]) -> Round:
    """A row of ``rounds_table`` as a record."""
    fields = dict(row._mapping)
    if fields["gates"] is not None:
        fields["gates"] = GateSummary(**{**fields["gates"], **_tuples(fields["gates"])})
    if fields["decision"] is not None:
        fields["decision"] = RoundDecision(**fields["decision"])
    return Round(**fields)


def insert_round(connection: Connection, begun: Round) -> None:
    """Store a new round, with its event."""
    connection.execute(insert(rounds_table).values(_row_of(begun)))
    audit.made(begun.id)
    _announce(connection, begun)


def change_round(connection: Connection, before: Round, now: datetime, **changes: Any) -> Round:
    """Store a change of a round; a new state with its event.

    Args:
        connection: A write transaction.
        before: The round as it is stored.
        now: The time, in UTC.
        changes: Fields of the round.

    Returns:
        The round as it is now.
    """
    after = replace(before, **changes, updated_at=now)
    if after.ended and before.ended_at is None:
        after = replace(after, ended_at=now)
    connection.execute(update(rounds_table).where(rounds_table.c.id == after.id).values(_row_of(after)))
    if after.state != before.state:
        _announce(connection, after)
    return after


def _announce(connection: Connection, round_: Round) -> None:
    fields = ("id", "adapter", "number", "state", "reason", "job", "candidate", "experiment")
    add_event(connection, f"round.{round_.state}", {name: getattr(round_, name) for name in fields})


def _row_of(round_: Round) -> dict[str, Any]:
    """The inverse of ``round_of``."""
    fields = dict(vars(round_))
    for name in ("judgements", "policy"):
        fields[name] = dict(fields[name])
    for name in ("gates", "decision"):
        if fields[name] is not None:
            fields[name] = asdict(fields[name])
    return fields


def get_round(connection: Connection, id: str) -> Round:
    """A round by its id.

    Raises:
        NotFound: There is none.
    """
    row = connection.execute(select(rounds_table).where(rounds_table.c.id == id)).one_or_none()
    if row is None or not scope.visible(row.adapter):
        raise NotFound(
            f"there is no round {names.quoted(id)}: graftwork rounds list shows those there are",
            code="round_not_found",
        )
    return round_of(row)


def _tuples(gates: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(gates[name]) for name in ("refusals", "doubts")}
