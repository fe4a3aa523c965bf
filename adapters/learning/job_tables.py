"""The tables of jobs, their events and checkpoints, and their rows as records."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Integer,
    Named,
    Row,
    Table,
    Text,
    TypedColumns,
)

from graftwork.adapters.learning.job import Job, JobEvent
from graftwork.adapters.storage.database import UtcDateTime, schema


class _JobColumns(TypedColumns):
    number: Named[int] = Column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    id: Named[str] = Column(Text)
    created_at = Column(UtcDateTime, nullable=False)
    created_by: Named[str] = Column(Text)
    key_id: Named[str] = Column(Text)
    idempotency_key: Named[str | None] = Column(Text)
    model: Named[str] = Column(Text)
    name: Named[str] = Column(Text)
    parent: Named[str | None] = Column(Text)
    method: Named[str] = Column(Text)
    hyperparameters = Column(JSON, nullable=False)
    seed: Named[int] = Column(BigInteger)
    training_file: Named[str] = Column(Text)
    validation_file: Named[str | None] = Column(Text)
    metadata = Column(JSON, nullable=False)
    status: Named[str] = Column(Text)
    started_at = Column(UtcDateTime, nullable=True)
    finished_at = Column(UtcDateTime, nullable=True)
    owner: Named[str | None] = Column(Text)
    token: Named[int] = Column(BigInteger)
    lease_until = Column(UtcDateTime, nullable=True)
    attempts: Named[int] = Column(Integer)
    publishing: Named[bool] = Column(Boolean)
    relayed_bytes: Named[int] = Column(BigInteger)
    progress = Column(JSON, nullable=False)
    version: Named[str | None] = Column(Text)
    result_files = Column(JSON, nullable=False)
    trained_tokens: Named[int | None] = Column(BigInteger)
    metrics = Column(JSON, nullable=False)
    error = Column(JSON(none_as_null=True), nullable=True)


class _JobEventColumns(TypedColumns):
    id: Named[int] = Column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    at = Column(UtcDateTime, nullable=False)
    job: Named[str] = Column(Text)
    level: Named[str] = Column(Text)
    kind: Named[str] = Column(Text)
    message: Named[str] = Column(Text)
    data = Column(JSON, nullable=False)


class _CheckpointColumns(TypedColumns):
    id: Named[int] = Column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    at = Column(UtcDateTime, nullable=False)
    job: Named[str] = Column(Text)
    step: Named[int] = Column(Integer)
    metrics = Column(JSON, nullable=False)


jobs_table = Table("jobs", schema, _JobColumns)


job_events_table = Table("job_events", schema, _JobEventColumns)


job_checkpoints_table = Table("job_checkpoints", schema, _CheckpointColumns)


def job_of(row: Row[*tuple[Any, ...]]) -> Job:
    """A row of ``jobs_table`` as a record."""
    return Job(**{**row._mapping, "result_files": tuple(row.result_files)})


def job_event_of(row: Row[*tuple[Any, ...]]) -> JobEvent:
    """A row of ``job_events_table`` as a record."""
    return JobEvent(id=row.id, at=row.at, job=row.job, level=row.level, message=row.message, data=row.data)
