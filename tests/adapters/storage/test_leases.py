"""Leases: one holder at a time, and another one after the holder has died."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from graftwork.adapters.errors import Conflict
from graftwork.adapters.storage.database import Database, migrate
from graftwork.adapters.storage.leases import Lease, Leases


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "graftwork.db")
    migrate(database)
    yield database
    database.close()


@pytest.fixture
def leases(database: Database) -> Leases:
    return Leases(database)


def expire(database: Database) -> None:
    with database.write() as connection:
        connection.execute(text("UPDATE leases SET expires_at = '2000-01-01T00:00:00.000000Z'"))


def test_one_holds_it_until_it_is_let_go(leases: Leases) -> None:
    assert leases.holder("keeper") is None
    mine = leases.acquire("keeper", "a", seconds=60)
    assert mine is not None
    assert (mine.owner, mine.token) == ("a", 1)
    assert mine.expires_at.timestamp() - time.time() == pytest.approx(60, abs=5)
    assert leases.holder("keeper") == mine
    assert leases.acquire("keeper", "b", seconds=60) is None
    assert leases.acquire("another", "b", seconds=60) is not None
    again = leases.acquire("keeper", "a", seconds=90)
    assert again is not None
    assert (again.token, again.acquired_at) == (1, mine.acquired_at)
    assert again.expires_at > mine.expires_at
    leases.release(mine)
    assert leases.holder("keeper") is None
    theirs = leases.acquire("keeper", "b", seconds=60)
    assert theirs is not None
    assert theirs.token == 2
    leases.release(mine)
    assert leases.holder("keeper") == theirs, "what is another's by now is not let go"


def test_who_does_not_renew_loses_it_and_finds_out(leases: Leases, database: Database) -> None:
    mine = leases.acquire("keeper", "a", seconds=60)
    assert mine is not None
    expire(database)
    assert leases.holder("keeper") is None
    renewed = leases.renew(mine, seconds=60)
    assert renewed is not None, "expired, but nobody took it"
    expire(database)
    theirs = leases.acquire("keeper", "b", seconds=60)
    assert theirs is not None
    assert theirs.token == 2
    assert leases.renew(mine, seconds=60) is None
    with database.write() as connection:
        leases.check(connection, theirs)
    with pytest.raises(Conflict, match="passed to another"), database.write() as connection:
        leases.check(connection, mine)
    longer = leases.renew(theirs, seconds=600)
    assert longer is not None
    assert longer.expires_at > theirs.expires_at


def test_a_lease_of_a_wrong_clock_is_not_waited_for(leases: Leases, database: Database) -> None:
    assert leases.acquire("keeper", "dead", seconds=15) is not None
    with database.write() as connection:
        connection.execute(text("UPDATE leases SET expires_at = '2099-01-01T00:00:00.000000Z'"))
    theirs = leases.acquire("keeper", "b", seconds=15)
    assert theirs is not None
    assert theirs.token == 2
    assert theirs.expires_at.timestamp() - time.time() == pytest.approx(15, abs=5)


@pytest.mark.parametrize("days", [-400, 400])
def test_a_clock_that_jumps_leaves_one_holder(leases: Leases, database: Database, days: float) -> None:
    jump = timedelta(0)
    database.now = lambda _: datetime.now(UTC) + jump
    dead = leases.acquire("keeper", "dead", seconds=15)
    assert dead is not None
    jump = timedelta(days=days)
    # The holder lives: with its next renewal, if nobody was faster, everything is as it was.
    renewed = leases.renew(dead, seconds=15)
    assert renewed is not None
    assert leases.acquire("keeper", "b", seconds=15) is None
    # It dies, and the clock is set right.
    jump = timedelta(0)
    theirs = leases.acquire("keeper", "b", seconds=15)
    assert theirs is not None, "no lease is held until a time that nobody meant"
    assert leases.renew(dead, seconds=15) is None, "who comes back finds out"
    with pytest.raises(Conflict), database.write() as connection:
        leases.check(connection, dead)
    assert leases.acquire("keeper", "c", seconds=15) is None


def test_being_refused_writes_nothing(leases: Leases, database: Database, tmp_path: Path) -> None:
    leases.acquire("keeper", "a", seconds=60)
    watching = sqlite3.connect(tmp_path / "graftwork.db")
    before = watching.execute("PRAGMA data_version").fetchone()
    assert leases.acquire("keeper", "b", seconds=60) is None
    assert watching.execute("PRAGMA data_version").fetchone() == before
    watching.close()


def acquire_at_once(path: Path, owner: str, start_at: float) -> Lease | None:
    leases = Leases(Database(path))
    time.sleep(max(0.0, start_at - time.time()))
    return leases.acquire("keeper", owner, seconds=600)


# Renewed every fifth of a second, and longer than a slow disk takes for two commits.
HELD_SECONDS = 5.0


def hold(path: Path, ready: Any) -> None:
    leases = Leases(Database(path))
    lease = leases.acquire("keeper", "the one that is killed", seconds=HELD_SECONDS)
    assert lease is not None
    ready.set()
    while lease is not None:
        time.sleep(0.2)
        lease = leases.renew(lease, seconds=HELD_SECONDS)


def test_of_many_processes_and_threads_one_gets_it(database: Database, tmp_path: Path) -> None:
    path, start_at = tmp_path / "graftwork.db", time.time() + 3
    with get_context("spawn").Pool(2) as processes:
        started = processes.starmap_async(acquire_at_once, [(path, f"p{n}", start_at) for n in range(4)])
        with ThreadPoolExecutor(4) as threads:
            here = list(threads.map(acquire_at_once, [path] * 4, [f"t{n}" for n in range(4)], [start_at] * 4))
        (winner,) = [lease for lease in here + started.get(120) if lease is not None]
    assert Leases(database).holder("keeper") == winner


def test_when_the_holder_is_killed_another_one_gets_it(database: Database, tmp_path: Path) -> None:
    context = get_context("spawn")
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path / "graftwork.db", ready), daemon=True)
    process.start()
    assert ready.wait(60)
    leases = Leases(database)
    held_until = time.monotonic() + HELD_SECONDS + 1
    while time.monotonic() < held_until:  # longer than its seconds: it renews
        assert leases.acquire("keeper", "next", seconds=60) is None
        time.sleep(0.1)
    process.kill()
    process.join()
    deadline = time.monotonic() + 10 * HELD_SECONDS
    while (mine := leases.acquire("keeper", "next", seconds=60)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert mine.token == 2
