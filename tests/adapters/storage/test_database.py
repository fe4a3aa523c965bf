"""The database: one writer, consistent reads, change notification, forks, and migrations."""

from __future__ import annotations

import os
import sqlite3
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from multiprocessing import get_context
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Column, MetaData, Table, inspect, select, text
from sqlalchemy.exc import StatementError

from graftwork.adapters import registry
from graftwork.adapters.access import audit, keys, usage
from graftwork.adapters.batches import batches
from graftwork.adapters.errors import ConfigurationError, InvalidRequest, Unavailable
from graftwork.adapters.experiments import exposures
from graftwork.adapters.experiments import tables as experiment_tables
from graftwork.adapters.feedback import feedback, interactions, lineage
from graftwork.adapters.feedback import policies as log_policies
from graftwork.adapters.learning import files, job_tables, split_ledger
from graftwork.adapters.learning.rounds import policies as learning_policies
from graftwork.adapters.learning.rounds import table as rounds
from graftwork.adapters.storage import database as db
from graftwork.adapters.storage import leases
from graftwork.adapters.storage import settings as secrets
from graftwork.adapters.storage.database import Database, UtcDateTime, migrate
from graftwork.adapters.webhooks import outbox

# Imported for their tables, all of which test_schema_is_what_the_code_expects compares.
MODULES_WITH_TABLES = (
    *(
        audit,
        batches,
        experiment_tables,
        exposures,
        feedback,
        files,
        interactions,
        job_tables,
        keys,
        learning_policies,
        leases,
        rounds,
        split_ledger,
        usage,
    ),
    *(lineage, log_policies, registry),
    secrets,
    outbox,
)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "graftwork.db")
    with database.write() as connection:
        connection.execute(text("CREATE TABLE counter (value INTEGER)"))
        connection.execute(text("INSERT INTO counter VALUES (0)"))
        connection.execute(text("CREATE TABLE topics (name TEXT, version INTEGER)"))
        connection.execute(text("INSERT INTO topics VALUES ('keys', 0)"))
    yield database
    database.close()


def read(database: Database) -> int:
    with database.read() as connection:
        return int(connection.scalar(text("SELECT value FROM counter")))


def add(database: Database, amount: int = 1) -> None:
    """Read, then write what follows from it: wrong as soon as two writers overlap."""
    with database.write() as connection:
        value = connection.scalar(text("SELECT value FROM counter"))
        connection.execute(text("UPDATE counter SET value = :value"), {"value": value + amount})


def add_from_another_process(path: Path, times: int) -> None:
    database = Database(path)
    for _ in range(times):
        add(database)


TOUCH = "UPDATE topics SET version = version + 1 WHERE name = 'keys'"


def touch(database: Database) -> None:
    with database.write() as connection:
        connection.execute(text(TOUCH))


def break_off(database: Database, *statements: str) -> None:
    with database.write() as connection:
        for statement in statements:
            connection.execute(text(statement))
        raise RuntimeError


def in_child(*work: Callable[[], object]) -> int:
    """Run in a fork of this process; its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for step in work:
                step()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_connections_are_set_up(database: Database) -> None:
    for connect in (database.read, database.write):
        with connect() as connection:
            values = [
                connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("journal_mode", "synchronous", "foreign_keys", "secure_delete", "busy_timeout")
            ]
        assert values == ["wal", 2, 1, 1, 10_000]


def test_an_exception_takes_everything_back(database: Database) -> None:
    with pytest.raises(RuntimeError):
        break_off(database, "UPDATE counter SET value = 5", "CREATE TABLE other (x)")
    assert read(database) == 0
    with database.read() as connection:
        assert inspect(connection).get_table_names() == ["counter", "topics"]


def test_writers_take_turns(database: Database, tmp_path: Path) -> None:
    process = get_context("spawn").Process(target=add_from_another_process, args=(tmp_path / "graftwork.db", 30))
    process.start()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: add(database), range(60)))
    process.join()
    assert process.exitcode == 0
    assert read(database) == 90


def test_who_waits_too_long_gets_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db, "BUSY_TIMEOUT_SECONDS", 0.05)
    holder, other = Database(tmp_path / "a.db"), Database(tmp_path / "a.db")
    with holder.write():
        for _ in range(20):  # more often than the pool has connections: none is lost
            with pytest.raises(Unavailable, match="locked by another writer"), other.write():
                pass
    with other.write():
        pass
    holder.close()
    other.close()


def test_a_reader_sees_one_moment_and_waits_for_nobody(database: Database) -> None:
    with database.read() as connection:
        assert connection.scalar(text("SELECT value FROM counter")) == 0
        add(database)
        assert connection.scalar(text("SELECT value FROM counter")) == 0
    with database.write() as connection:
        connection.execute(text("UPDATE counter SET value = 7"))
        assert read(database) == 1


def test_a_topic_changes_with_every_commit_to_its_tables_and_only_then(database: Database, tmp_path: Path) -> None:
    other = Database(tmp_path / "graftwork.db")
    seen = {database.topic_version("keys")}
    for commit in (
        lambda: touch(database),
        lambda: touch(other),
        lambda: in_child(lambda: touch(database)),
    ):
        commit()
        version = database.topic_version("keys")
        assert version not in seen
        seen.add(version)
        add(database)
        add_from_another_process(tmp_path / "graftwork.db", 1)
        assert database.topic_version("keys") == version
    with pytest.raises(RuntimeError):
        break_off(database, TOUCH)
    assert database.topic_version("keys") == max(seen)
    other.close()


def test_topics_notice_what_happened_while_nobody_was_looking(database: Database) -> None:
    seen = set()
    for _ in range(5):
        seen.add(database.topic_version("keys"))
        database.close()
        touch(database)
    assert database.topic_version("keys") not in seen
    assert len(seen) == 5


def test_a_forked_child_works_and_leaves_the_parent_alone(database: Database, tmp_path: Path) -> None:
    read(database)
    database.topic_version("keys")
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        # A thread in the middle of a transaction: the fork copies its connection into the child all the same.
        with database.write() as connection:
            connection.execute(text("UPDATE counter SET value = value + 100"))
            held.set()
            release.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    assert in_child(lambda: read(database), lambda: database.topic_version("keys"), database.close) == 0
    # The child's end has not dropped the lock of the parent's transaction.
    intruder = sqlite3.connect(tmp_path / "graftwork.db", timeout=0.05)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        intruder.execute("BEGIN IMMEDIATE")
    release.set()
    thread.join()
    intruder.execute("BEGIN IMMEDIATE")
    intruder.rollback()
    assert in_child(*[lambda: add(database)] * 5) == 0
    add(database)
    assert read(database) == 106
    assert intruder.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    intruder.close()


def test_nothing_open_or_locked_crosses_a_fork(database: Database, tmp_path: Path) -> None:
    with database.read(), database.read():
        pass
    database.topic_version("keys")
    parents = (database._engine, database._topics)

    def look() -> None:
        links = [Path(entry) for entry in os.scandir("/proc/self/fd")]
        assert not [link for link in links if link.is_symlink() and link.readlink().is_relative_to(tmp_path)]
        assert not {database._engine, database._topics} & {*parents}

    assert in_child(look) == 0


def test_times_are_stored_in_utc_and_sort_as_text(database: Database) -> None:
    table = Table("times", MetaData(), Column("at", UtcDateTime))
    local = datetime(2026, 11, 22, 18, 14, 57, tzinfo=timezone(timedelta(hours=1)))
    with database.write() as connection:
        table.create(connection)
        connection.execute(table.insert(), [{"at": local}, {"at": local - timedelta(microseconds=1)}, {"at": None}])
        assert connection.execute(text("SELECT at, julianday(at) IS NULL FROM times")).all() == [
            ("2026-11-22T17:14:57.000000Z", 0),
            ("2026-11-22T17:14:56.999999Z", 0),
            (None, 1),
        ]
        found = connection.scalars(select(table.c.at).where(table.c.at < local)).all()
        assert found == [local - timedelta(microseconds=1)]
        assert [at.tzinfo for at in found if at] == [UTC]
        with pytest.raises(StatementError, match="no time zone"):
            connection.execute(table.insert().values(at=datetime(2026, 1, 1)))


@pytest.mark.parametrize("folder", ["plain", "with space", "100%_#?&;'\"ü"])
def test_migrate_makes_a_database_that_only_the_user_reads(tmp_path: Path, folder: str) -> None:
    path = tmp_path / folder / "graftwork.db"
    path.parent.mkdir()
    database = Database(path)
    migrate(database)
    watching = sqlite3.connect(path)
    first = watching.execute("PRAGMA data_version").fetchone()
    migrate(database)
    assert watching.execute("PRAGMA data_version").fetchone() == first, "nothing to do, nothing written"
    watching.close()
    assert sorted(entry.name.removeprefix("graftwork.db") for entry in path.parent.iterdir()) == ["", "-shm", "-wal"]
    assert {stat.S_IMODE(entry.stat().st_mode) for entry in path.parent.iterdir()} == {0o600}
    database.close()


def test_schema_is_what_the_code_expects(tmp_path: Path) -> None:
    database = Database(tmp_path / "graftwork.db")
    migrate(database)
    with database.read() as connection:
        # Constraints and indexes are the migrations' alone.
        context = MigrationContext.configure(
            connection, opts={"include_object": lambda item, name, kind, *_: kind in ("table", "column")}
        )
        assert compare_metadata(context, db.schema) == []
        statements = connection.scalars(
            text("SELECT sql FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        ).all()
        names = inspect(connection).get_table_names()
    assert {"adapters", "alembic_version", "alias_events", "aliases", "keys", "versions"} <= {*names}
    assert {*names} - {"alembic_version"} == {*db.schema.tables}
    assert all(" ( -- " in statement for statement in statements if "alembic_version" not in statement)
    database.close()


def migrate_from_another_process(path: Path) -> None:
    migrate(Database(path))


def test_processes_may_migrate_at_once(tmp_path: Path) -> None:
    processes = [
        get_context("spawn").Process(target=migrate_from_another_process, args=(tmp_path / "graftwork.db",))
        for _ in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4


def test_threads_may_migrate_at_once(tmp_path: Path) -> None:
    databases = [Database(tmp_path / "graftwork.db") for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(migrate, databases))
    for database in databases:
        database.close()


def test_a_migration_that_breaks_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(tmp_path / "graftwork.db")
    with database.write() as connection:
        connection.execute(text("CREATE TABLE keys (theirs)"))
    with pytest.raises(ConfigurationError, match="already exists"):
        migrate(database)
    with database.read() as connection:
        assert inspect(connection).get_table_names() == ["keys"]
    database.close()


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    database = Database(tmp_path / "graftwork.db")
    migrate(database)
    with database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigurationError, match=r"schema 9999, which is newer .* start the version that wrote it"):
        migrate(database)
    database.close()


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("not a database, but long enough to be looked at" * 100)
    (tmp_path / "folder.db").mkdir()
    for path in (tmp_path / "text.db", tmp_path / "folder.db", tmp_path / "missing" / "graftwork.db"):
        with pytest.raises(ConfigurationError, match="cannot be opened"):
            migrate(Database(path))
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize(
    "location",
    [
        *("sqlite://", "sqlite:///:memory:", "sqlite:///a.db?mode=ro&uri=true", "mysql://h/d", "http://h", "a://"),
        *("postgres://h/d", "postgresql+psycopg2://h/d", "postgresql://h:port/d"),
    ],
)
def test_locations_that_cannot_work(location: str) -> None:
    with pytest.raises(ConfigurationError):
        Database(location)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'graftwork\[postgresql\]'"):
        Database("postgresql://me@host/graftwork")


@pytest.mark.parametrize("limit", [0, -1, 101])
def test_limits_out_of_range(limit: int) -> None:
    with pytest.raises(InvalidRequest, match="1 to 100"):
        db.check_limit(limit)
