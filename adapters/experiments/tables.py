"""The tables of experiments, their epochs, joined arms and events, and their rows as records."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Connection,
    Integer,
    Named,
    Row,
    Select,
    Table,
    Text,
    TypedColumns,
    select,
)

from graftwork.adapters import names
from graftwork.adapters.access import scope
from graftwork.adapters.errors import NotFound
from graftwork.adapters.experiments.assignment import Split
from graftwork.adapters.experiments.experiment import Epoch, Experiment, ExperimentOutcome
from graftwork.adapters.experiments.plan import Arm, ExperimentPlan
from graftwork.adapters.storage.database import UtcDateTime, schema


class _ExperimentColumns(TypedColumns):
    name: Named[str] = Column(Text, primary_key=True)
    adapter: Named[str] = Column(Text)
    plan = Column(JSON, nullable=False)
    salt: Named[str] = Column(Text)
    started_at = Column(UtcDateTime, nullable=False)
    started_by: Named[str] = Column(Text)
    ended_at = Column(UtcDateTime, nullable=True)
    outcome = Column(JSON(none_as_null=True), nullable=True)


class _EpochColumns(TypedColumns):
    experiment: Named[str] = Column(Text, primary_key=True)
    number: Named[int] = Column(Integer, primary_key=True, autoincrement=False)
    at = Column(UtcDateTime, nullable=False)
    arcs = Column(JSON, nullable=False)


class _ExperimentEventColumns(TypedColumns):
    id: Named[int] = Column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    at = Column(UtcDateTime, nullable=False)
    experiment: Named[str] = Column(Text)
    action: Named[str] = Column(Text)
    arm: Named[str | None] = Column(Text)
    actor: Named[str] = Column(Text)
    reason: Named[str | None] = Column(Text)
    details = Column(JSON(none_as_null=True), nullable=True)


class _JoinedArmColumns(TypedColumns):
    experiment: Named[str] = Column(Text, primary_key=True)
    epoch: Named[int] = Column(Integer, primary_key=True, autoincrement=False)
    arm = Column(JSON, nullable=False)


experiments_table = Table("experiments", schema, _ExperimentColumns)


epochs_table = Table("experiment_epochs", schema, _EpochColumns)


joined_arms_table = Table("experiment_arms", schema, _JoinedArmColumns)


experiment_events_table = Table("experiment_events", schema, _ExperimentEventColumns)


def require_experiment(connection: Connection, name: str) -> Experiment:
    """An experiment by name.

    Raises:
        NotFound: There is none.
    """
    found = find_experiment(connection, name)
    if found is None or not scope.visible(found.plan.adapter):
        raise NotFound(
            f"there is no experiment {names.quoted(name)}: graftwork experiments list shows what there is",
            param="name",
            code="experiment_not_found",
        )
    return found


def find_experiment(connection: Connection, name: str) -> Experiment | None:
    """An experiment by name, if there is one."""
    return next(
        iter(read_experiments(connection, select(experiments_table).where(experiments_table.c.name == name))), None
    )


def find_running(connection: Connection, adapter: str) -> Experiment | None:
    """The running experiment of an adapter, if there is one."""
    query = select(experiments_table).where(
        experiments_table.c.adapter == adapter, experiments_table.c.ended_at.is_(None)
    )
    return next(iter(read_experiments(connection, query)), None)


def read_experiments(connection: Connection, query: Select[*tuple[Any, ...]]) -> list[Experiment]:
    """The experiments that a query on ``experiments_table`` finds, with their epochs."""
    rows = connection.execute(query).all()
    epochs: dict[str, list[Row[*tuple[Any, ...]]]] = {row.name: [] for row in rows}
    which = select(epochs_table).where(epochs_table.c.experiment.in_(epochs)).order_by(epochs_table.c.number)
    for epoch in connection.execute(which):
        epochs[epoch.experiment].append(epoch)
    joined: dict[str, list[Arm]] = {name: [] for name in epochs}
    late = select(joined_arms_table).where(joined_arms_table.c.experiment.in_(epochs))
    for arm in connection.execute(late.order_by(joined_arms_table.c.epoch)):
        joined[arm.experiment].append(Arm(**arm.arm))
    return [_experiment(row, epochs[row.name], joined[row.name]) for row in rows]


def _experiment(row: Row[*tuple[Any, ...]], epochs: list[Row[*tuple[Any, ...]]], joined: list[Arm]) -> Experiment:
    plan = ExperimentPlan.from_json(row.plan)
    plan = replace(plan, arms=(*plan.arms, *joined))
    return Experiment(
        name=row.name,
        plan=plan,
        salt=row.salt,
        started_at=row.started_at,
        started_by=row.started_by,
        epochs=tuple(
            Epoch(number=epoch.number, at=epoch.at, split=Split.from_json(plan.control.name, epoch.arcs))
            for epoch in epochs
        ),
        ended_at=row.ended_at,
        outcome=None if row.outcome is None else ExperimentOutcome(**row.outcome),
    )
