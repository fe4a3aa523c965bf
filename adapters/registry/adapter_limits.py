"""Limits of adapters: how much all keys together may ask of one."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import select, update

from graftwork.adapters.access.limits import NO_LIMITS, Limits
from graftwork.adapters.registry.registry import Registry
from graftwork.adapters.registry.tables import adapters_table
from graftwork.adapters.storage.cache import DatabaseCache
from graftwork.adapters.storage.database import Database


class AdapterLimiting:
    """The limits of the adapters of one database.

    Args:
        database: Where they are stored.
        registry: Knows which adapters there are.
    """

    def __init__(self, database: Database, registry: Registry) -> None:
        self._database = database
        self._registry = registry
        self._by_name: DatabaseCache[Mapping[str, Limits]] = DatabaseCache(
            database, "registry", {}, lambda old: self._all()
        )

    def limits_of(self, name: str) -> Limits:
        """The limits of an adapter, from memory."""
        return self._by_name.get().get(name, NO_LIMITS)

    def get(self, name: str) -> Limits:
        """The limits of an adapter.

        Raises:
            NotFound: There is no such adapter.
        """
        self._registry.adapter(name)
        return self.limits_of(name)

    def set(self, name: str, limits: Limits) -> None:
        """Set the limits of an adapter; they take the place of all that it has.

        Raises:
            NotFound: There is no such adapter.
        """
        self._registry.adapter(name)
        with self._database.write() as connection:
            stored = limits.to_json() or None
            connection.execute(update(adapters_table).where(adapters_table.c.name == name).values(limits=stored))

    def _all(self) -> dict[str, Limits]:
        query = select(adapters_table).where(adapters_table.c.limits.is_not(None))
        with self._database.read() as connection:
            return {row.name: Limits.from_json(row.limits) for row in connection.execute(query)}
