"""A cache of what was read from the database, valid until anybody commits something."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from graftwork.adapters.storage.database import Database

T = TypeVar("T")


class DatabaseCache(Generic[T]):
    """``refresh`` makes the value of the last one, and is called when anything was committed since.

    It should replace what it is given, not change it: readers may still hold it. No lock: threads that refresh at once
    do the same work twice, and each gets what was committed when it looked. A slow one may leave an older value behind,
    with its older version: the next look refreshes it.
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
