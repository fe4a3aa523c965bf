"""The database: one file in SQLite's WAL mode, or PostgreSQL by its URL. All differences between the two are here.

What the rest of the project may rely on, with either:

- Everything inside one ``with database.write() as connection:`` is one transaction, and there is one writer at a time,
  across threads and processes. Code that reads, decides and writes in there needs no further locks and no retries.
- When ``write()`` has ended without an error, its rows survive a crash of the process and a power cut.
- Everything inside one ``with database.read() as connection:`` sees one moment.
- ``data_version()`` costs microseconds on SQLite and changes when anything was committed.

Times are stored in UTC: on SQLite as text like ``2026-11-22T17:14:57.123456Z``, which sorts by time and which
SQLite's own date functions understand; on PostgreSQL as ``timestamptz``.

Tables belong to the modules that use them, their history to ``migrations/``. No command-line option selects
PostgreSQL yet: it is here for servers on several machines.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import (
    URL,
    Connection,
    Dialect,
    Engine,
    MetaData,
    Text,
    TypeDecorator,
    create_engine,
    event,
    func,
    make_url,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import TIMESTAMP
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateTable
from sqlalchemy.sql.compiler import DDLCompiler
from sqlalchemy.types import TypeEngine

from graftwork.adapters.errors import ConfigurationError, InvalidRequest, Unavailable
from graftwork.adapters.storage.durable import DISK_FULL

# How long a writer waits for the others. Writes take milliseconds: after this long another process must be stuck.
BUSY_TIMEOUT_SECONDS = 10.0

# The key of PostgreSQL's advisory lock behind write(): "graftwrk" in ASCII.
_WRITE_LOCK = int.from_bytes(b"graftwrk")

_POSTGRESQL_DISK_FULL = "53100"

_MIGRATIONS = Path(__file__).parent / "migrations"

# The modules' tables register here, columns only: constraints and triggers are in the migrations.
schema = MetaData()

T = TypeVar("T")


class Page(list[T]):
    """Some entries of a longer list; ``has_more`` says whether others follow."""

    def __init__(self, items: Iterable[T], *, has_more: bool) -> None:
        super().__init__(items)
        self.has_more = has_more

    @classmethod
    def of(cls, found: list[T], limit: int) -> Page[T]:
        """The page of ``limit`` entries, from a query of one more."""
        return cls(found[:limit], has_more=len(found) > limit)


def check_limit(limit: int) -> None:
    """Check the length of a page.

    Raises:
        InvalidRequest: It is not from 1 to 100.
    """
    if not 1 <= limit <= 100:
        raise InvalidRequest(f"limit is {limit}: use a number from 1 to 100", param="limit")


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime, stored in UTC as the module docstring says."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """``timestamptz`` on PostgreSQL, else text."""
        if dialect.name == "postgresql":
            return dialect.type_descriptor(TIMESTAMP(timezone=True))
        return dialect.type_descriptor(Text())

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        """The value to store.

        Raises:
            ValueError: It has no time zone.
        """
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone: the database keeps UTC")
        value = value.astimezone(UTC)
        if dialect.name == "postgresql":
            return value
        return value.isoformat(timespec="microseconds").replace("+00:00", "Z")

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """The stored value as an aware datetime in UTC."""
        if value is None:
            return None
        stored = value if isinstance(value, datetime) else datetime.fromisoformat(value)
        return stored.astimezone(UTC)


@compiles(CreateTable, "sqlite")
def _comment_inside(element: CreateTable, compiler: DDLCompiler, **options: Any) -> str:
    """SQLite has no COMMENT ON, but it stores the statement's text: ``.schema`` then shows a table's comment."""
    statement: str = compiler.visit_create_table(element, **options)  # type: ignore[no-untyped-call]
    comment = element.element.comment
    return statement.replace("(", f"( -- {comment}", 1) if comment else statement


class Database:
    """One database, shared by the threads of a process and safe to carry over a fork.

    No connection of SQLite may cross a fork: in the child its locks do not hold although it assumes so. So idle
    connections are closed just before this process forks, whatever forks it, and the child opens its own. Fork outside
    ``with`` blocks of the forking thread.

    Args:
        location: The path of an SQLite file (created by ``migrate``), or an SQLAlchemy URL of SQLite or PostgreSQL.

    Raises:
        ConfigurationError: The URL is not usable, or PostgreSQL's driver is not installed.
    """

    before_commit: Callable[[Connection], None] | None = None
    """Called at the end of every write transaction, as a part of it."""

    _reading: Engine
    _writing: Engine
    _watch: sqlite3.Connection | None
    _watch_lock: threading.Lock

    def __init__(self, location: str | Path) -> None:
        self.url = _parse(location)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._watched = 0
        self._renew()
        _databases.add(self)

    def __str__(self) -> str:
        """Its location without a password, for messages and logs."""
        return self.url.database or "" if self.is_sqlite else self.url.render_as_string(hide_password=True)

    @contextmanager
    def write(self, within: Connection | None = None) -> Iterator[Connection]:
        """A transaction by the only writer; committed at the end of the block, rolled back by any exception in it.

        Does not nest.

        Args:
            within: A write transaction of the caller's, to be part of: that is yielded, and ends where it began.

        Raises:
            Unavailable: Other writers held the lock for ``BUSY_TIMEOUT_SECONDS``, or the disk is full.
        """
        if within is not None:
            yield within
            return
        with self._writing.begin() as connection:
            if not self.is_sqlite:
                # The price of the same guarantee on both databases: PostgreSQL could let writers overlap.
                connection.execute(select(func.pg_advisory_xact_lock(_WRITE_LOCK)))
            yield connection
            if self.before_commit is not None:
                self.before_commit(connection)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A read-only transaction that sees one moment and never blocks."""
        with self._reading.begin() as connection:
            yield connection

    def data_version(self) -> object:
        """A token that equals an earlier one only if nothing was committed in between, by this process or another.

        Take it *before* reading what depends on it: then a commit between the two is noticed the next time.
        """
        if not self.is_sqlite:
            with self._reading.connect() as connection:
                # xmin:xmax:running. A commit ends a running transaction or raises xmax; neither is ever undone.
                return connection.scalar(text("SELECT pg_current_snapshot()::text"))
        with self._watch_lock:
            if self._watch is None:
                # Not from the pool: the pragma's number is relative to what this one connection saw before.
                self._watch = sqlite3.connect(
                    self._file, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
                )
                # The pragma's numbers differ between connections: the token says which one it is from.
                self._watched += 1
            return self._watched, self._watch.execute("PRAGMA data_version").fetchone()[0]

    def close(self) -> None:
        """Close idle connections. The database can still be used: it opens new ones."""
        self._engine.dispose()
        with self._watch_lock:
            if self._watch is not None:
                self._watch.close()
                self._watch = None

    @property
    def _file(self) -> str:
        return str(self.url.database)

    def _renew(self) -> None:
        """Begin without connections and locks."""
        self._engine = _create_engine(self.url)
        if self.is_sqlite:
            self._reading = self._engine
            self._writing = self._engine.execution_options(immediate=True)
        else:
            self._reading = self._engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            self._writing = self._engine
        self._watch = None
        self._watch_lock = threading.Lock()

    def _inherit(self) -> None:
        """In the child: forget the parent's connections without closing them, which would touch the parent's locks."""
        _parent_connections.append((self._engine, self._watch))
        self._renew()


def migrate(database: Database) -> None:
    """Migrate the schema to this version of the code; create the database if there is none.

    Any number of processes may call it at once: the first one does the work, in one transaction.

    Raises:
        ConfigurationError: The database cannot be opened, or was written by a newer version.
    """
    # Alembic is only needed here, once per start.
    from alembic import command
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    if database.is_sqlite:
        # It contains users' texts: readable by this user only. SQLite gives its -wal and -shm the same mode.
        with suppress(OSError):
            os.close(os.open(str(database), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    try:
        with database.write() as connection:
            current = MigrationContext.configure(connection).get_current_revision()
            if current is not None and current not in known:
                raise ConfigurationError(
                    f"the database {database} has schema {current}, which is newer than this graftwork "
                    f"(it knows up to {max(known)}): start the version that wrote it, or a later one"
                )
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except DBAPIError as error:
        raise ConfigurationError(
            f"the database {database} cannot be opened: {error.orig}. Check that it is a database of graftwork and "
            "that this user may read and write it and its folder"
        ) from error


def _parse(location: str | Path) -> URL:
    if isinstance(location, Path) or "://" not in location:
        return URL.create("sqlite", database=str(Path(location).absolute()))
    try:
        url = make_url(location)
    except ArgumentError as error:
        raise ConfigurationError(f"the database's URL cannot be read: {error}") from error
    if url.get_backend_name() not in ("sqlite", "postgresql"):
        raise ConfigurationError(
            f"no support for {url.get_backend_name()}: give the path of an SQLite file, or a URL like "
            "postgresql://user:password@host/database"
        )
    if url.get_backend_name() == "postgresql":
        return url
    if url.database in (None, "", ":memory:") or url.query:
        raise ConfigurationError("SQLite's database must be a plain file, sqlite:////path/to/it: processes share it")
    return URL.create("sqlite", database=str(Path(str(url.database)).absolute()))


def _create_engine(url: URL) -> Engine:
    serializer = partial(json.dumps, allow_nan=False)
    if url.get_backend_name() != "sqlite":
        try:
            engine = create_engine(url, json_serializer=serializer, pool_pre_ping=True)
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"PostgreSQL needs the driver {error.name!r}: install it with pip install 'psycopg[binary]'"
            ) from error
        event.listen(engine, "handle_error", _say_that_the_disk_is_full)
        return engine
    # No bound on connections: the number of threads is bounded, and waiting for a connection would be invisible.
    engine = create_engine(
        url, json_serializer=serializer, max_overflow=-1, connect_args={"timeout": BUSY_TIMEOUT_SECONDS}
    )
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    event.listen(engine, "handle_error", _say_that_the_disk_is_full)
    return engine


def _say_that_the_disk_is_full(context: ExceptionContext) -> None:
    original = context.original_exception
    if (
        getattr(original, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        or getattr(original, "sqlstate", None) == _POSTGRESQL_DISK_FULL
    ):
        raise Unavailable(
            "the server's disk is full, and nothing of this was kept: make room and send it again", code=DISK_FULL
        ) from original


def _configure_sqlite(connection: sqlite3.Connection, _: object) -> None:
    # Switch off the driver's own BEGIN (before some statements, never before SELECT or DDL).
    connection.isolation_level = None
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise ConfigurationError(
            f"SQLite cannot keep a write-ahead log here (journal mode {mode!r}): put the home folder on a local disk"
        )
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    # Overwrite deleted rows: an erased user's texts must not stay in the file's free pages.
    connection.execute("PRAGMA secure_delete = ON")


def _begin_sqlite(connection: Connection) -> None:
    if not connection.get_execution_options().get("immediate"):
        connection.exec_driver_sql("BEGIN")
        return
    # IMMEDIATE takes the write lock before the first read: what was read cannot change before it is acted upon, and
    # no transaction fails halfway because another one wrote first.
    try:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    except OperationalError as error:
        if getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
            raise Unavailable(
                f"the database was locked by another writer for {BUSY_TIMEOUT_SECONDS:.0f} s: try again, and look for "
                "a process that holds it open"
            ) from error
        raise


_databases: weakref.WeakSet[Database] = weakref.WeakSet()

# Never freed: Python would close them, which would release the parent's locks.
_parent_connections: list[object] = []


def _before_fork() -> None:
    for database in list(_databases):
        database.close()


def _after_fork_in_child() -> None:
    for database in list(_databases):
        database._inherit()


os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
