"""A cache of data read from the database, valid until anything is committed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from graftwork.adapters.storage.database import Database

T = TypeVar("T")


class DatabaseCache(Generic[T]):
    """A value computed from the database, computed again after a commit by any process.

    No lock: threads that refresh at the same time do the same work twice, and each gets what was committed when it
    began. A slow one may store an older value, with its older version: the next ``get`` refreshes it.

    Args:
        database: Tells whether anything was committed.
        first: The value before the first refresh.
        refresh: Computes a new value from the last one, without changing that: readers may still hold it.
    """

    def __init__(self, database: Database, first: T, refresh: Callable[[T], T]) -> None:
        self._database = database
        self._refresh = refresh
        self._seen: tuple[object, T] = (None, first)

    def get(self) -> T:
        """The value as of everything that was committed before this call."""
        version = self._database.data_version()
        seen, value = self._seen
        if seen != version:
            value = self._refresh(value)
            self._seen = (version, value)
        return value
