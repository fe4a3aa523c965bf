"""The database: one file in SQLite's WAL mode, or PostgreSQL by its URL. All differences between the two are here.

What the rest of the project may rely on, with either:

- Everything inside one ``with database.write() as connection:`` is one transaction, and there is one writer at a time,
  across threads, processes and machines. Code that reads, decides and writes in there needs no further locks and no
  retries.
- ``append()`` is for rows that are only ever added: with PostgreSQL many append at once.
- When either has ended without an error, its rows survive a crash of the process and a power cut.
- Everything inside one ``with database.read() as connection:`` sees one moment.
- ``topic_version()`` says in microseconds whether data of a topic has changed (``topics``).
- While PostgreSQL is away, all of them raise ``Unavailable`` at once, and work again as soon as it is back.

Times are stored in UTC: on SQLite as text like ``2026-11-22T17:14:57.123456Z``, which sorts by time and which
SQLite's own date functions understand; on PostgreSQL as ``timestamptz``.

Tables belong to the modules that use them, their history to ``migrations/``.
"""

from __future__ import annotations

import json
import os
import sqlite3
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from sqlalchemy import (
    URL,
    BigInteger,
    Column,
    Connection,
    Dialect,
    Engine,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    create_engine,
    event,
    func,
    make_url,
    select,
    text,
)
from sqlalchemy.dialects import postgresql as postgresql_dialect
from sqlalchemy.dialects import sqlite as sqlite_dialect
from sqlalchemy.dialects.postgresql import TIMESTAMP
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateTable
from sqlalchemy.sql.compiler import DDLCompiler
from sqlalchemy.types import TypeEngine

from graftwork.adapters.errors import ConfigurationError, InvalidRequest, Unavailable
from graftwork.adapters.storage.durable import DISK_FULL
from graftwork.adapters.storage.topics import PolledTopics, SqliteTopics, Topic, Topics

# How long a writer waits for the others. Writes take milliseconds: after this long another process must be stuck.
BUSY_TIMEOUT_SECONDS = 10.0

DATABASE_FILE: Final = "graftwork.db"
"""The SQLite database of a home, in it."""

UNREACHABLE: Final = "database_unreachable"
"""The code of the error while PostgreSQL is away."""

Log = Literal["exposures", "feedback"]
"""Tables that are read from where one left off: their numbers must become visible in order."""

# The keys of PostgreSQL's advisory locks behind write() and append(): eight letters each, in ASCII.
_WRITE_LOCK = int.from_bytes(b"graftwrk")
_LOG_LOCKS: dict[Log, int] = {"exposures": int.from_bytes(b"graftexp"), "feedback": int.from_bytes(b"graftfbk")}

_POSTGRESQL_DISK_FULL, _POSTGRESQL_LOCKED, _POSTGRESQL_CANCELED = "53100", "55P03", "57014"

#: Read-only, as a standby; no such table, as while a dump is read in; no permission yet. All of them pass.
_POSTGRESQL_NOT_YET: Final = ("25006", "42P01", "42501")

STATEMENT_TIMEOUT_SECONDS = 60

# A bound on everything: an error is better than a thread that waits for ever for a machine that is gone.
_POSTGRESQL_OPTIONS: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    "options": f"-c statement_timeout={STATEMENT_TIMEOUT_SECONDS}s -c lock_timeout={BUSY_TIMEOUT_SECONDS:.0f}s "
    f"-c idle_in_transaction_session_timeout={STATEMENT_TIMEOUT_SECONDS}s",
    "application_name": "graftwork",
}

_MIGRATIONS = Path(__file__).parent / "migrations"

# The modules' tables register here, columns only: constraints and triggers are in the migrations.
schema = MetaData()

# Read by ``topics``; only triggers write it.
Table("topics", schema, Column("name", Text, primary_key=True), Column("version", BigInteger, nullable=False))

REFUSALS: Final = (IntegrityError, DataError)
"""What a database says of a row that it never takes. Its other errors are about itself, and may pass."""

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
    _topics: Topics

    def __init__(self, location: str | Path) -> None:
        self.url = database_url(location)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._renew()
        _databases.add(self)

    def __str__(self) -> str:
        """Its location without a password, for messages and logs."""
        # libpq takes passwords among the parameters, too.
        return self.url.database or "" if self.is_sqlite else self.url.set(query={}).render_as_string()

    @contextmanager
    def write(self, within: Connection | None = None) -> Iterator[Connection]:
        """A transaction by the only writer; committed at the end of the block, rolled back by any exception in it.

        Does not nest.

        Args:
            within: A write transaction of the caller's, to be part of: that is yielded, and ends where it began.

        Raises:
            Unavailable: Other writers held the lock for ``BUSY_TIMEOUT_SECONDS``, the disk is full, or the database
                cannot be reached.
        """
        if within is not None:
            yield within
            return
        with self._begin(self._writing) as connection:
            if not self.is_sqlite:
                # The price of the same guarantee on both databases: PostgreSQL could let writers overlap.
                connection.execute(select(func.pg_advisory_xact_lock(_WRITE_LOCK)))
                self._topics.look()  # what is decided in here by data in memory is decided by the latest
            yield connection
            if self.before_commit is not None:
                self.before_commit(connection)
        with suppress(Unavailable):
            self._topics.look()  # a process sees its own changes at once

    @contextmanager
    def append(self, log: Log | None = None) -> Iterator[Connection]:
        """A transaction that only adds rows whose keys tell whether they are there already. Does not nest.

        With PostgreSQL it takes no turn: many commit at once, where ``write`` would let each wait for the disk by
        itself. What is added must therefore be right whatever others write meanwhile, and change no topic.

        Args:
            log: A table that is added to. Those who add to the same one take turns among themselves, so that a lower
                number never becomes visible after a higher one.

        Raises:
            Unavailable: As for ``write``.
        """
        with self._begin(self._writing) as connection:
            if log is not None and not self.is_sqlite:
                connection.execute(select(func.pg_advisory_xact_lock(_LOG_LOCKS[log])))
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A read-only transaction that sees one moment and never blocks."""
        with self._begin(self._reading) as connection:
            yield connection

    @property
    def is_away(self) -> bool:
        """Whether PostgreSQL cannot be reached at the moment, as far as this process knows."""
        return self._topics.is_away

    def topic_version(self, topic: Topic) -> int:
        """A number that equals an earlier one only if nothing of the topic has changed in between, by any process.

        Take it *before* reading what depends on it: then a commit between the two is noticed the next time.

        Raises:
            Unavailable: The database cannot be reached, and never was.
        """
        return self._topics.version(topic)

    def insert_new(self, table: Table) -> sqlite_dialect.Insert | postgresql_dialect.Insert:
        """``INSERT``, of the rows whose keys are not there yet."""
        if self.is_sqlite:
            return sqlite_dialect.insert(table).on_conflict_do_nothing()
        return postgresql_dialect.insert(table).on_conflict_do_nothing()

    def now(self, connection: Connection) -> datetime:
        """The time by the database's clock, which all machines share that share the database."""
        if self.is_sqlite:
            return datetime.now(UTC)
        now: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
        return now.astimezone(UTC)

    def close(self) -> None:
        """Close idle connections. The database can still be used: it opens new ones."""
        self._engine.dispose()
        self._topics.close()

    @contextmanager
    def _begin(self, engine: Engine) -> Iterator[Connection]:
        if self._topics.is_away:
            raise _unreachable()  # at once, instead of after a time-out in every thread
        try:
            connection = engine.connect()
        except PoolTimeout as error:
            raise Unavailable(
                f"all connections to the database were busy for {BUSY_TIMEOUT_SECONDS:.0f} s: try again"
            ) from error
        with connection, connection.begin():
            yield connection

    def _renew(self) -> None:
        """Begin without connections and locks."""
        self._engine = _create_engine(self.url)
        if self.is_sqlite:
            self._reading = self._engine
            self._writing = self._engine.execution_options(immediate=True)
            self._topics = SqliteTopics(str(self.url.database), timeout=BUSY_TIMEOUT_SECONDS)
        else:
            self._reading = self._engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            self._writing = self._engine
            polling = _create_engine(self.url, pool_size=1, max_overflow=0)
            self._topics = PolledTopics(polling.execution_options(isolation_level="AUTOCOMMIT"))

    def _inherit(self) -> None:
        """In the child: forget the parent's connections without closing them, which would touch the parent's locks."""
        _parent_connections.append((self._engine, self._topics))
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
            if not database.is_sqlite:
                connection.execute(text("SET LOCAL statement_timeout = 0"))  # of large tables it may take minutes
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except DBAPIError as error:
        raise ConfigurationError(
            f"the database {database} cannot be opened: {error.orig}. Check that it is a database of graftwork and "
            "that this user may read and write it and its folder"
        ) from error
    except Unavailable as error:
        if error.code != UNREACHABLE:
            raise
        raise ConfigurationError(
            f"the database {database} cannot be opened: {str(error.__cause__).strip()}. Check its URL, that it runs, "
            "and that this user may connect"
        ) from error


def has_password(url: str) -> bool:
    """Whether a database's URL has a password: before its host, or among libpq's parameters.

    Raises:
        ConfigurationError: The URL is not usable.
    """
    parsed = database_url(url)
    return parsed.password is not None or any(name.endswith("password") for name in parsed.query)


def database_url(location: str | Path) -> URL:
    """The URL of a database: a path is a SQLite file.

    Raises:
        ConfigurationError: It is of no database that is supported; the message does not show a password.
    """
    if isinstance(location, Path) or "://" not in location:
        return URL.create("sqlite", database=str(Path(location).absolute()))
    try:
        url = make_url(location)
    except (ArgumentError, ValueError) as error:
        raise ConfigurationError(
            "the database's URL cannot be read: it looks like postgresql://user@host:5432/database, with a password "
            "escaped as in other URLs (%40 is @)"
        ) from error
    if url.drivername in ("postgresql", "postgresql+psycopg"):
        return url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() != "sqlite":
        raise ConfigurationError(
            f"no support for {url.drivername}: give the path of an SQLite file, or a URL like "
            "postgresql://user@host/database"
        )
    if url.database in (None, "", ":memory:") or url.query:
        raise ConfigurationError("SQLite's database must be a plain file, sqlite:////path/to/it: processes share it")
    return URL.create("sqlite", database=str(Path(str(url.database)).absolute()))


def _create_engine(url: URL, *, pool_size: int = 5, max_overflow: int = 10) -> Engine:
    serializer = partial(json.dumps, allow_nan=False)
    if url.get_backend_name() != "sqlite":
        try:
            engine = create_engine(
                url,
                json_serializer=serializer,
                pool_pre_ping=True,  # connections of before a restart are replaced, and nobody notices
                pool_size=pool_size,
                max_overflow=max_overflow,
                pool_timeout=BUSY_TIMEOUT_SECONDS,
                connect_args={name: value for name, value in _POSTGRESQL_OPTIONS.items() if name not in url.query},
            )
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"PostgreSQL needs the driver {error.name!r}: install it with pip install 'graftwork[postgresql]'"
            ) from error
        event.listen(engine, "handle_error", _say_that_the_disk_is_full)
        event.listen(engine, "handle_error", _say_that_it_is_away)
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


def _say_that_it_is_away(context: ExceptionContext) -> None:
    """Make one error of all that say that PostgreSQL is stopped, starting, read-only, full of connections, or slow."""
    if context.is_pre_ping:
        return  # the pool replaces the connection
    state = getattr(context.original_exception, "sqlstate", None)
    if state == _POSTGRESQL_LOCKED:
        raise _locked() from context.original_exception
    if state == _POSTGRESQL_CANCELED:
        raise Unavailable(
            f"the database was stopped at this after {STATEMENT_TIMEOUT_SECONDS} s: ask for less, or try again later"
        ) from context.original_exception
    is_away = context.is_disconnect or isinstance(context.sqlalchemy_exception, OperationalError | InterfaceError)
    if is_away or state in _POSTGRESQL_NOT_YET:
        raise _unreachable() from context.original_exception


def _unreachable() -> Unavailable:
    return Unavailable(
        "the database cannot be reached: nothing of this was kept; send it again when the server is ready",
        code=UNREACHABLE,
    )


def _locked() -> Unavailable:
    return Unavailable(
        f"the database was locked by another writer for {BUSY_TIMEOUT_SECONDS:.0f} s: try again, and look for "
        "a process that holds it open"
    )


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
            raise _locked() from error
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
