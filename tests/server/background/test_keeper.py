"""The keeper: duties run when they are due, in one keeper at a time, with takeover when it dies."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from graftwork.adapters.storage.database import Database, migrate
from graftwork.adapters.storage.leases import Lease, Leases
from graftwork.server.background.keeper import LEASE, Keeper


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "graftwork.db")
    migrate(database)
    yield database
    database.close()


@pytest.fixture
def make(database: Database) -> Iterator[Callable[..., Keeper]]:
    made: list[Keeper] = []

    def make(**options: Any) -> Keeper:
        made.append(Keeper(Leases(database), **options))
        return made[-1]

    yield make
    for keeper in made:
        keeper.stop()


def eventually(check: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_duties_are_done_at_once_and_again_whatever_the_others_do(
    make: Callable[..., Keeper], database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    done: list[str] = []
    leases: list[Lease] = []

    def fail(lease: Lease) -> None:
        done.append("broken")
        raise RuntimeError("not today")

    keeper = make(seconds=3)
    keeper.add_duty("broken", fail, every=0.1)
    keeper.add_duty("often", lambda lease: (done.append("often"), leases.append(lease)), every=0.1)
    keeper.add_duty("once", lambda _: done.append("once"), every=3600)
    keeper.start()
    eventually(lambda: done.count("often") >= 3 and done.count("broken") >= 2)
    assert done.count("once") == 1
    assert "duty 'broken' failed" in caplog.text
    assert "not today" in caplog.text
    with database.write() as connection:
        Leases(database).check(connection, leases[-1])


def test_no_duty_waits_for_another(make: Callable[..., Keeper]) -> None:
    done: list[str] = []
    released = threading.Event()
    keeper = make(seconds=3)
    keeper.add_duty("long", lambda _: released.wait(20), every=0.1)
    keeper.add_duty("short", lambda _: done.append("short"), every=0.05)
    keeper.start()
    eventually(lambda: len(done) >= 3)
    released.set()


def test_one_of_two_keepers_does_it_and_the_other_when_it_stops(make: Callable[..., Keeper]) -> None:
    done: list[str] = []
    first, second = make(seconds=3), make(seconds=3)
    for keeper, name in ((first, "first"), (second, "second")):
        keeper.add_duty("count", lambda _, name=name: done.append(name), every=0.05)  # type: ignore[misc]
    first.start()
    eventually(lambda: "first" in done)
    second.start()
    time.sleep(4)  # the lease was renewed meanwhile
    assert "second" not in done
    first.stop()
    num_before = done.count("first")
    eventually(lambda: "second" in done)
    assert done.count("first") == num_before


def keep_for_ever(path: Path, ready: Any) -> None:
    keeper = Keeper(Leases(Database(path)), seconds=3)
    keeper.add_duty("say", lambda _: ready.set(), every=0.1)
    keeper.start()
    threading.Event().wait()


def test_when_a_keeper_is_killed_another_one_goes_on(
    make: Callable[..., Keeper], database: Database, tmp_path: Path
) -> None:
    context = get_context("spawn")
    ready = context.Event()
    process = context.Process(target=keep_for_ever, args=(tmp_path / "graftwork.db", ready), daemon=True)
    process.start()
    assert ready.wait(60)
    done = threading.Event()
    keeper = make(seconds=3)
    keeper.add_duty("say", lambda _: done.set(), every=0.1)
    keeper.start()
    assert not done.wait(0.5)
    process.kill()
    process.join()
    assert done.wait(20)


def test_a_keeper_whose_lease_was_taken_begins_nothing_more(make: Callable[..., Keeper], database: Database) -> None:
    """As after a long sleep of its machine."""
    done: list[float] = []
    keeper = make(seconds=3.0)
    keeper.add_duty("count", lambda _: done.append(time.monotonic()), every=0.05)
    keeper.start()
    eventually(lambda: bool(done))
    with database.write() as connection:
        # No later than another machine would have it: a lease for longer is one of a wrong clock, and is not heeded.
        expires_at = f"{datetime.now(UTC) + timedelta(seconds=5):%Y-%m-%dT%H:%M:%S.%fZ}"
        taken = "UPDATE leases SET owner = 'another machine', token = token + 1, expires_at = :expires_at"
        connection.execute(text(taken), {"expires_at": expires_at})
    eventually(lambda: not keeper._held.is_set())
    time.sleep(0.2)  # for one under way
    num_done = len(done)
    time.sleep(0.5)
    assert len(done) == num_done


def test_stopping_lets_others_have_the_lease_and_waits_for_a_duty(
    make: Callable[..., Keeper], database: Database
) -> None:
    began, ended = threading.Event(), threading.Event()

    def slow(_: Lease) -> None:
        began.set()
        time.sleep(0.3)
        ended.set()

    keeper = make(seconds=60)
    keeper.add_duty("slow", slow, every=0.1)
    keeper.start()
    assert began.wait(20)
    keeper.stop()
    assert ended.is_set()
    assert Leases(database).holder(LEASE) is None


def test_a_keeper_that_never_began_can_be_stopped(make: Callable[..., Keeper]) -> None:
    make().stop()
