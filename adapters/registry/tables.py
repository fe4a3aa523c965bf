"""The registry's tables, and their rows as records. Constraints and triggers are in the migrations."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import JSON, BigInteger, Boolean, Column, Integer, Named, Row, Table, Text, TypedColumns

from graftwork.adapters.registry.records import AliasEvent, Version
from graftwork.adapters.storage.database import UtcDateTime, schema


class _AdapterColumns(TypedColumns):
    name: Named[str] = Column(Text, primary_key=True)
    created_at = Column(UtcDateTime, nullable=False)
    limits = Column(JSON(none_as_null=True), nullable=True)


class _VersionColumns(TypedColumns):
    name: Named[str] = Column(Text, primary_key=True)
    number: Named[int] = Column(Integer, primary_key=True, autoincrement=False)
    digest: Named[str] = Column(Text)
    base_digest: Named[str] = Column(Text)
    verified: Named[bool] = Column(Boolean)
    rank: Named[int] = Column(Integer)
    num_parameters: Named[int] = Column(BigInteger)
    num_bytes: Named[int] = Column(BigInteger)
    config = Column(JSON, nullable=False)
    parent: Named[int | None] = Column(Integer)
    data_digest: Named[str | None] = Column(Text)
    metadata = Column(JSON, nullable=False)
    created_at = Column(UtcDateTime, nullable=False)
    retired_at = Column(UtcDateTime, nullable=True)


class _AliasColumns(TypedColumns):
    name: Named[str] = Column(Text, primary_key=True)
    alias: Named[str] = Column(Text, primary_key=True)
    number: Named[int] = Column(Integer)


class _EventColumns(TypedColumns):
    id: Named[int] = Column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    at = Column(UtcDateTime, nullable=False)
    action: Named[str] = Column(Text)
    name: Named[str] = Column(Text)
    alias: Named[str | None] = Column(Text)
    from_version: Named[int | None] = Column(Integer)
    to_version: Named[int | None] = Column(Integer)
    actor: Named[str] = Column(Text)
    reason: Named[str | None] = Column(Text)


adapters_table: Final = Table("adapters", schema, _AdapterColumns)
versions_table: Final = Table("versions", schema, _VersionColumns)
aliases_table: Final = Table("aliases", schema, _AliasColumns)
alias_events_table: Final = Table("alias_events", schema, _EventColumns)


def version_of(row: Row[*tuple[Any, ...]]) -> Version:
    """A row of ``versions_table`` as a record."""
    return Version(**row._mapping)


def event_of(row: Row[*tuple[Any, ...]]) -> AliasEvent:
    """A row of ``alias_events_table`` as a record."""
    return AliasEvent(**row._mapping)
