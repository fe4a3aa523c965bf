"""Exposures (which request was answered by which arm), closed units with their outcomes, and stored readings.

An exposure is written by a trigger of the database, together with its interaction. A unit is open until its window has
ended; then it is closed: its outcome is computed for good and gets the next number. All statistics are computed from
closed units in the order of their numbers, now and at any later time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    Integer,
    Named,
    Table,
    Text,
    TypedColumns,
    func,
    insert,
    select,
    update,
)

from graftwork.adapters.experiments.experiment import Json
from graftwork.adapters.experiments.metrics import AnsweredRequest
from graftwork.adapters.storage.database import Database, UtcDateTime, schema
from graftwork.adapters.storage.leases import Fence
from graftwork.adapters.storage.paging import rows_in_order

READ_AT_ONCE: Final = 1000
"""Rows that are read in one query."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exposure(AnsweredRequest):
    """One logged request that an arm answered. ``seq`` is its number in the order of logging."""

    seq: int
    unit: str
    arm: str
    probability: float
    created_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class ClosedUnit:
    """The outcome of a unit.

    Attributes:
        unit: The unit.
        arm: Its first arm.
        epoch: The epoch in which it was assigned.
        first_at: When its first request was logged.
        learned: An arm's version was trained on this user or prompt, so that the unit is left out of the metrics. True
            in units of 0.1.0 alone: since then such a unit stays open until it has a request that counts.
        outcome: Its value of each metric, by label.
        covariate: Its mean of the primary metric before the experiment; ``None``: it has none, or the plan wants none.
    """

    unit: str
    arm: str
    epoch: int
    first_at: datetime
    learned: bool
    outcome: Mapping[str, float | None]
    covariate: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredReading:
    """A reading as it was stored, after so many units."""

    id: int
    at: datetime
    units: int
    reading: Json


class _ExposureColumns(TypedColumns):
    seq: Named[int] = Column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    experiment: Named[str] = Column(Text)
    interaction_id: Named[str] = Column(Text)
    unit: Named[str] = Column(Text)
    arm: Named[str] = Column(Text)
    probability: Named[float] = Column(Double)
    created_at = Column(UtcDateTime, nullable=False)
    status: Named[str] = Column(Text)
    total_ms: Named[float] = Column(Double)
    completion_tokens: Named[int] = Column(Integer)


class _UnitColumns(TypedColumns):
    experiment: Named[str] = Column(Text, primary_key=True)
    number: Named[int] = Column(Integer, primary_key=True, autoincrement=False)
    unit: Named[str] = Column(Text)
    arm: Named[str] = Column(Text)
    epoch: Named[int] = Column(Integer)
    first_at = Column(UtcDateTime, nullable=False)
    closed_at = Column(UtcDateTime, nullable=False)
    learned: Named[bool] = Column(Boolean)
    outcome = Column(JSON, nullable=False)
    covariate: Named[float | None] = Column(Double)


class _ReadingColumns(TypedColumns):
    id: Named[int] = Column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    experiment: Named[str] = Column(Text)
    at = Column(UtcDateTime, nullable=False)
    units: Named[int] = Column(Integer)
    reading = Column(JSON, nullable=False)


_exposures = Table("exposures", schema, _ExposureColumns)


_units = Table("experiment_units", schema, _UnitColumns)


_readings = Table("experiment_readings", schema, _ReadingColumns)

_OF_AN_EXPOSURE = [_exposures.c[name] for name in Exposure.__dataclass_fields__]


_OF_A_UNIT = [_units.c[name] for name in ClosedUnit.__dataclass_fields__]


class Exposures:
    """The exposures, units and readings of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def since(self, experiment: str, seq: int) -> Iterator[Exposure]:
        """Exposures after ``seq``, in that order; a later one never becomes visible before an earlier one."""
        query = select(*_OF_AN_EXPOSURE).where(_exposures.c.experiment == experiment)
        rows = rows_in_order(self._database, query, _exposures.c.seq, after=seq, at_once=READ_AT_ONCE)
        return (Exposure(**row._mapping) for row in rows)

    def closed(self, experiment: str) -> Iterator[ClosedUnit]:
        """All closed units, in the order of their numbers."""
        query = select(*_OF_A_UNIT, _units.c.number).where(_units.c.experiment == experiment)
        for *values, _number in rows_in_order(self._database, query, _units.c.number, at_once=READ_AT_ONCE):
            yield ClosedUnit(**dict(zip(ClosedUnit.__dataclass_fields__, values, strict=True)))

    def close(self, experiment: str, units: Sequence[ClosedUnit], *, fence: Fence | None = None) -> None:
        """Close units, in this order; all of them or none.

        Args:
            experiment: Their experiment.
            units: With their outcomes.
            fence: Called with the connection, in the transaction; may raise.
        """
        with self._database.write() as connection:
            if fence is not None:
                fence(connection)
            last = connection.scalar(select(func.max(_units.c.number)).where(_units.c.experiment == experiment)) or 0
            now = datetime.now(UTC)
            rows = [
                {"experiment": experiment, "number": number, "closed_at": now}
                | {name: getattr(unit, name) for name in ClosedUnit.__dataclass_fields__}
                for number, unit in enumerate(units, last + 1)
            ]
            connection.execute(insert(_units), rows)

    def save_reading(
        self, experiment: str, units: int, reading: Json, *, new: bool, fence: Fence | None = None
    ) -> None:
        """Store a reading: as a ``new`` point of the chart, or in place of the last one.

        Args:
            experiment: The experiment.
            units: Closed units so far.
            reading: Its JSON.
            new: Keep the last one.
            fence: Called with the connection, in the transaction; may raise.
        """
        values = {"at": datetime.now(UTC), "units": units, "reading": reading}
        with self._database.write() as connection:
            if fence is not None:
                fence(connection)
            last = connection.scalar(select(func.max(_readings.c.id)).where(_readings.c.experiment == experiment))
            if new or last is None:
                connection.execute(insert(_readings).values(experiment=experiment, **values))
            else:
                connection.execute(update(_readings).where(_readings.c.id == last).values(values))

    def last_reading(self, experiment: str) -> StoredReading | None:
        """The newest reading, if there is one."""
        found = self.readings(experiment, limit=1)
        return found[-1] if found else None

    def readings(self, experiment: str, *, limit: int = 200) -> list[StoredReading]:
        """Stored readings, oldest first: at most ``limit``, spread evenly, the newest among them."""
        columns = [_readings.c[name] for name in StoredReading.__dataclass_fields__]
        mine = _readings.c.experiment == experiment
        with self._database.read() as connection:
            ids = connection.scalars(select(_readings.c.id).where(mine).order_by(_readings.c.id.desc())).all()
            step = -(-len(ids) // limit) or 1
            query = select(*columns).where(_readings.c.id.in_(ids[::step])).order_by(_readings.c.id)
            return [StoredReading(**row._mapping) for row in connection.execute(query)]


SHADOW_OF = "shadow_of"
"""In the metadata of a shadow arm's interaction: the id of the answer that the user got."""
