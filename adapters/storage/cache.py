"""A cache of data read from the database, valid until its topic changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from graftwork.adapters.errors import Unavailable
from graftwork.adapters.storage.database import Database
from graftwork.adapters.storage.topics import Topic

T = TypeVar("T")


class DatabaseCache(Generic[T]):
    """A value computed from the database, computed again after a change of its topic by any process.

    While the database is away it is what it was: only one that was never computed cannot be had then.

    No lock: threads that refresh at the same time do the same work twice, and each gets what was committed when it
    began. A slow one may store an older value, with its older version: the next ``get`` refreshes it.

    Args:
        database: Tells whether the topic has changed.
        topic: What the value depends on.
        first: The value before the first refresh.
        refresh: Computes a new value from the last one, without changing that: readers may still hold it.
    """

    def __init__(self, database: Database, topic: Topic, first: T, refresh: Callable[[T], T]) -> None:
        self._database = database
        self._topic = topic
        self._refresh = refresh
        self._seen: tuple[int | None, T] = (None, first)

    def get(self) -> T:
        """The value as of the topic's version before this call.

        Raises:
            Unavailable: The database is away, and the value was never computed.
        """
        seen, value = self._seen
        try:
            version = self._database.topic_version(self._topic)
            if seen != version:
                value = self._refresh(value)
                self._seen = (version, value)
        except Unavailable:
            if seen is None:
                raise
        return value
