"""Topics: what data in memory depends on. A topic's version changes with every change of its tables, and with no other.

The table ``topics`` has a row for each. Triggers of migration 0011 raise its version in the transaction that changes
the data: so nobody can forget it, and what is logged all the time changes no topic.

With SQLite versions are exact at every look. With PostgreSQL they are what a thread read last, at most
``POLL_SECONDS`` and a query ago: requests never wait for it, and while it is away they are answered from what was seen.
A process sees its own changes at once (``Database.write`` looks when it has committed), and what it decides in a write
transaction it decides by what is true then (``write`` also looks when it has the lock).
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from typing import Final, Literal, Protocol

from sqlalchemy import Engine, text

from graftwork.adapters.errors import Unavailable, first_line

log = logging.getLogger(__name__)

Topic = Literal["registry", "keys", "experiments", "log_policies"]

POLL_SECONDS: Final = 0.5

LATE_SECONDS: Final = 5.0
"""A look that takes longer than this counts as an outage, too: the database is reached and does not answer."""

_QUERY: Final = "SELECT name, version FROM topics"


class Topics(Protocol):
    """The versions of one database's topics, as one process knows them. Safe to call from any thread."""

    @property
    def is_away(self) -> bool:
        """Whether the database could not be reached at the last look."""

    def version(self, topic: Topic, /) -> int:
        """A topic's version. Take it *before* reading what depends on it: a commit between the two is noticed later."""

    def look(self) -> None:
        """Read the versions now, where they are not read at every call.

        Raises:
            Unavailable: The database cannot be reached.
        """

    def close(self) -> None:
        """Close connections; the next call opens new ones."""


class SqliteTopics:
    """Topics of a SQLite file, looked at whenever they are asked for: it takes microseconds.

    Args:
        file: The path of the database.
        timeout: Seconds that a look waits for a lock.
    """

    is_away = False

    def __init__(self, file: str, *, timeout: float) -> None:
        self._file = file
        self._timeout = timeout
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._commits: int | None = None
        self._versions: Mapping[str, int] = {}

    def version(self, topic: Topic, /) -> int:
        """A topic's version."""
        with self._lock:
            if self._connection is None:
                # Not from the pool: the pragma's number is relative to what this one connection saw before.
                self._connection = sqlite3.connect(
                    self._file, timeout=self._timeout, isolation_level=None, check_same_thread=False
                )
                self._commits = None
            commits = self._connection.execute("PRAGMA data_version").fetchone()[0]
            if commits != self._commits:
                self._versions = dict(self._connection.execute(_QUERY).fetchall())
                self._commits = commits
            return self._versions[topic]

    def look(self) -> None:
        """Do nothing: every call looks."""

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None


class PolledTopics:
    """Topics of a PostgreSQL database, read twice a second by a thread, which begins with the first call.

    Args:
        engine: With a connection for this alone, so that looks wait for no other query.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._versions: Mapping[str, int] | None = None
        self._failed = False
        self._looked_at = 0.0
        self._stop: threading.Event | None = None

    @property
    def is_away(self) -> bool:
        """Whether the last look failed, or is late."""
        return self._failed or (self._stop is not None and time.monotonic() - self._looked_at > LATE_SECONDS)

    def version(self, topic: Topic, /) -> int:
        """A topic's version, as of the last look."""
        versions = self._versions
        if versions is None:
            with self._lock:
                if self._stop is None:
                    self._start()  # before the first look: who else would notice that the database is back?
                if self._versions is None:
                    self._versions = self._read()
                versions = self._versions
        return versions[topic]

    def look(self) -> None:
        """Read the versions now, unless nobody has asked for them yet.

        Raises:
            Unavailable: The database cannot be reached.
        """
        with self._lock:  # one look after the other: none can put older versions in the place of newer ones
            if self._stop is not None:
                self._versions = self._read()

    def poll(self, stop: threading.Event) -> None:
        """Read the versions for the thread that ``stop`` ends, unless it was ended.

        Raises:
            Unavailable: The database cannot be reached.
        """
        with self._lock:
            if not stop.is_set():
                self._versions = self._read()

    def close(self) -> None:
        """End the thread and close the connection; the next call of ``version`` begins anew."""
        with self._lock:  # after a look that is under way, so that none keeps its connection or puts its versions back
            if self._stop is not None:
                self._stop.set()
            self._versions, self._stop, self._failed = None, None, False
            self._engine.dispose()

    def _start(self) -> None:
        self._looked_at, self._stop = time.monotonic(), threading.Event()
        arguments = weakref.ref(self), self._stop
        threading.Thread(target=_poll, args=arguments, name="database-topics", daemon=True).start()

    def _read(self) -> Mapping[str, int]:
        try:
            with self._engine.connect() as connection:
                versions = {row.name: row.version for row in connection.execute(text(_QUERY))}
        except Unavailable as error:
            if not self._failed:
                log.warning("the database cannot be reached: %s", first_line(error.__cause__ or error))
            self._failed = True
            raise
        if self._failed:
            log.info("the database can be reached again")
        self._failed, self._looked_at = False, time.monotonic()
        return versions


def _poll(topics: weakref.ref[PolledTopics], stop: threading.Event) -> None:
    """Look until told to stop, or until nobody holds the topics any more."""
    while not stop.wait(POLL_SECONDS):
        polled = topics()
        if polled is None:
            return
        try:
            with suppress(Unavailable):
                polled.poll(stop)
        except Exception:
            log.exception("the database's topics cannot be read; trying again")
        del polled
