"""Limits of keys: exact against a slow oracle, under threads, over days and restarts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from graftwork.adapters.access.limits import NO_LIMITS, Limits
from graftwork.adapters.access.usage import Usage, UsageLedger
from graftwork.adapters.errors import LimitExceeded, Unavailable
from graftwork.adapters.storage.database import Database, migrate
from graftwork.server.generation.limiter import Limiter, Reservation, duration, subject_of

NOON = datetime(2026, 3, 31, 12, tzinfo=UTC)


class NoLedger(UsageLedger):
    """Keeps nothing."""

    def __init__(self) -> None: ...


class Clock:
    def __init__(self, start: datetime = NOON) -> None:
        self.seconds = 0.0
        self.start = start

    def clock(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return self.start + timedelta(seconds=self.seconds)


def limiter(limits: Limits, clock: Clock, ledger: UsageLedger | None = None) -> Limiter:
    return Limiter(
        ledger or NoLedger(),
        lambda key_id: limits if key_id == "k" else NO_LIMITS,
        clock=clock.clock,
        now=clock.now,
    )


def test_an_adapters_limits_hold_for_all_keys_together() -> None:
    clock = Clock()
    limits = {"intents": Limits(requests_per_minute=3, tokens_per_day=100)}
    tried = Limiter(
        NoLedger(),
        lambda key_id: Limits(requests_per_minute=2) if key_id == "k" else NO_LIMITS,
        lambda name: limits.get(name, NO_LIMITS),
        clock=clock.clock,
        now=clock.now,
    )
    first = tried.begin("k", 50, adapter="intents")
    tried.begin("other", 50, adapter="intents").withdraw()
    with pytest.raises(LimitExceeded, match="the adapter intents has 100 tokens a day") as caught:
        tried.begin("other", 60, adapter="intents")
    assert caught.value.type == "tokens"
    first.settle(20)
    tried.begin("other", 60, adapter="intents").settle(60)
    clock.seconds = 30
    tried.begin("k", 5, adapter="intents")
    with pytest.raises(LimitExceeded, match="3 requests of the adapter intents") as caught:
        tried.begin("third", 5, adapter="intents")
    assert caught.value.retry_after == 30
    assert caught.value.headers == {}
    # Of both, the one that takes longer to pass.
    with pytest.raises(LimitExceeded, match="2 requests of this key") as caught:
        tried.begin("k", 5, adapter="another")
    assert caught.value.retry_after == 30
    tried.begin("third", 5, adapter="another")
    tried.begin("third", 5)
    assert tried.standing(subject_of("intents")).today == Usage(2, 80)
    assert tried.standing("k").requests == 2
    assert tried.standing(subject_of("another")).requests == 0


def refused(limiter: Limiter, tokens: int = 1) -> LimitExceeded:
    with pytest.raises(LimitExceeded) as caught:
        limiter.begin("k", tokens)
    return caught.value


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[UsageLedger]:
    database = Database(tmp_path / "graftwork.db")
    migrate(database)
    yield UsageLedger(database)
    database.close()


# --- against the oracle -----------------------------------------------------------------------------------------------


class Oracle:
    """The same by the plainest means: a list of all that ever began, gone through every time."""

    def __init__(self, limits: Limits, clock: Clock) -> None:
        self.limits = limits
        self.clock = clock
        self.began: list[dict[str, Any]] = []

    def has_room(self, tokens: int) -> bool:
        now, limits = self.clock.seconds, self.limits
        recent = [each for each in self.began if each["at"] > now - 60]
        today = [each for each in self.began if each["day"] == self.clock.now().date()]
        month = [each for each in self.began if each["day"].month == self.clock.now().month]
        return all(
            limit is None or used <= limit
            for used, limit in (
                (len(recent) + 1, limits.requests_per_minute),
                (sum(each["tokens"] for each in recent) + tokens, limits.tokens_per_minute),
                (sum(each["open"] for each in self.began) + 1, limits.concurrent),
                (sum(each["tokens"] for each in today) + tokens, limits.tokens_per_day),
                (sum(each["tokens"] for each in month) + tokens, limits.tokens_per_month),
            )
        )

    def begin(self, tokens: int) -> dict[str, Any]:
        entry = {"at": self.clock.seconds, "day": self.clock.now().date(), "tokens": tokens, "open": True}
        self.began.append(entry)
        return entry


maybe = st.none()
actions = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), st.integers(0, 12)),
        st.tuples(st.just("end"), st.integers(0, 12)),
        st.tuples(st.just("withdraw"), st.just(0)),
        st.tuples(st.just("wait"), st.sampled_from([0.25, 1, 20, 59.75, 60, 7200])),
    ),
    max_size=60,
)


@given(
    limits=st.builds(
        Limits,
        requests_per_minute=maybe | st.integers(1, 5),
        tokens_per_minute=maybe | st.integers(1, 30),
        concurrent=maybe | st.integers(1, 4),
        tokens_per_day=maybe | st.integers(1, 60),
        tokens_per_month=maybe | st.integers(1, 90),
    ),
    actions=actions,
)
def test_what_begins_is_what_the_oracle_lets_begin(limits: Limits, actions: list[tuple[str, float]]) -> None:
    clock = Clock(datetime(2026, 3, 30, 20, tzinfo=UTC))
    tried, oracle = limiter(limits, clock), Oracle(limits, clock)
    under_way: list[tuple[Reservation, dict[str, Any]]] = []
    for action, number in actions:
        if action == "wait":
            clock.seconds += number
        elif action == "begin":
            tokens, room = int(number), oracle.has_room(int(number))
            try:
                reservation = tried.begin("k", tokens)
            except LimitExceeded as refusal:
                assert not room
                _check_retry_after(refusal, oracle, clock, tokens)
            else:
                assert room
                under_way.append((reservation, oracle.begin(tokens)))
        elif under_way:
            reservation, entry = under_way.pop(0)
            if action == "withdraw":
                reservation.withdraw()
                oracle.began.remove(entry)
            else:
                used = min(int(number), entry["tokens"])
                reservation.settle(used)
                entry |= {"tokens": used, "open": False}
    recent = [each for each in oracle.began if each["at"] > clock.seconds - 60]
    standing = tried.standing("k")
    assert (standing.requests, standing.tokens) == (len(recent), sum(each["tokens"] for each in recent))
    assert standing.open == len(under_way)


def _check_retry_after(refusal: LimitExceeded, oracle: Oracle, clock: Clock, tokens: int) -> None:
    """After that time there is room, and a second before there was not, if what is under way stays as it is."""
    limits = oracle.limits
    largest = [limits.tokens_per_minute, limits.tokens_per_day, limits.tokens_per_month]
    assert refusal.never == any(limit is not None and tokens > limit for limit in largest)
    waits_for_others = limits.concurrent is not None and sum(e["open"] for e in oracle.began) >= limits.concurrent
    if refusal.never or waits_for_others:
        return
    if refusal.type == "tokens" and (limits.tokens_per_day or limits.tokens_per_month):
        return  # it may be that only what is under way must end
    before = clock.seconds
    clock.seconds = before + refusal.retry_after
    held = any(each["open"] for each in oracle.began)
    assert held or oracle.has_room(tokens)
    clock.seconds = before + refusal.retry_after - 1.001
    assert clock.seconds < before or not oracle.has_room(tokens)
    clock.seconds = before


# --- each limit -------------------------------------------------------------------------------------------------------


def test_requests_per_minute_slide() -> None:
    clock = Clock()
    tried = limiter(Limits(requests_per_minute=2), clock)
    tried.begin("k", 5).settle(5)
    clock.seconds = 20
    tried.begin("k", 5)
    refusal = refused(tried)
    assert (refusal.type, refusal.code, refusal.retry_after) == ("requests", "rate_limit_exceeded", 40)
    assert refusal.headers == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1m0s",
    }
    clock.seconds = 59.999
    assert refused(tried).retry_after == 1
    clock.seconds = 60
    tried.begin("k", 5)
    assert refused(tried).retry_after == 20
    tried.begin("another", 10**12)


def test_tokens_are_reserved_and_then_counted_as_they_were() -> None:
    clock = Clock()
    tried = limiter(Limits(tokens_per_minute=100), clock)
    first = tried.begin("k", 80)
    assert refused(tried, 30).type == "tokens"
    first.settle(10)
    first.settle(99)  # it has ended
    tried.begin("k", 90)
    assert tried.standing("k").headers()["x-ratelimit-remaining-tokens"] == "0"
    refusal = refused(tried, 101)
    assert refusal.never
    assert "smaller max_tokens" in refusal.message


def test_what_ends_after_its_minute_changes_no_other() -> None:
    clock = Clock()
    tried = limiter(Limits(tokens_per_minute=100), clock)
    slow = tried.begin("k", 100)
    clock.seconds = 60
    tried.begin("k", 100)
    slow.settle(1)
    assert refused(tried, 1).retry_after == 60


def test_what_did_not_begin_counts_for_nothing() -> None:
    tried = limiter(Limits(requests_per_minute=1, concurrent=1, tokens_per_day=10), Clock())
    for _ in range(3):
        tried.begin("k", 10).withdraw()
    assert tried.standing("k").today == Usage()
    tried.begin("k", 10)


def test_budgets_end_with_their_day_and_month() -> None:
    clock = Clock()
    tried = limiter(Limits(tokens_per_day=10, tokens_per_month=15), clock)
    tried.begin("k", 8).settle(8)
    refusal = refused(tried, 3)
    assert (refusal.type, refusal.code, refusal.retry_after) == ("insufficient_quota", "insufficient_quota", 12 * 3600)
    running = tried.begin("k", 2)
    assert (refused(tried, 2).type, refused(tried, 2).retry_after) == ("tokens", 1)  # it may take less
    assert refused(tried, 3).retry_after == 12 * 3600
    clock.seconds = 12 * 3600  # April begins
    running.settle(2)
    assert tried.standing("k").month == Usage()
    tried.begin("k", 10).settle(10)
    clock.seconds += 86400
    assert refused(tried, 6).retry_after == 29 * 86400
    reserved = tried.begin("k", 5)
    assert (refused(tried, 3).type, refused(tried, 3).retry_after) == ("tokens", 1)
    reserved.settle(0)
    tried.begin("k", 3)


def test_batches_are_held_by_budgets_alone() -> None:
    tried = limiter(Limits(requests_per_minute=1, tokens_per_minute=5, concurrent=1, tokens_per_day=20), Clock())
    tried.begin("k", 10, background=True).settle(10)
    tried.begin("k", 5)
    with pytest.raises(LimitExceeded, match="tokens a day"):
        tried.begin("k", 10, background=True)


def test_a_check_refuses_before_there_is_any_work() -> None:
    tried = limiter(Limits(requests_per_minute=1), Clock())
    tried.check("k")
    tried.begin("k", 1)
    with pytest.raises(LimitExceeded):
        tried.check("k")
    tried.check("another")


def test_threads_at_once_get_exactly_the_limit() -> None:
    tried = limiter(Limits(requests_per_minute=500, tokens_per_minute=2000, tokens_per_day=1200), Clock())
    gate = threading.Barrier(8)

    def ask() -> int:
        gate.wait()
        begun = 0
        for _ in range(300):
            try:
                tried.begin("k", 3).settle(2)
            except LimitExceeded:
                continue
            begun += 1
        return begun

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda _: ask(), range(8))) == 500
    assert tried.standing("k").today == Usage(500, 1000)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0ms"), (0.0171, "18ms"), (1, "1s"), (1.5, "1.5s"), (60, "1m0s"), (360.25, "6m0.25s"), (7200, "2h0m0s")],
)
def test_times_as_openai_writes_them(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


# --- what is stored ---------------------------------------------------------------------------------------------------


def test_budgets_outlive_the_process(ledger: UsageLedger) -> None:
    clock, limits = Clock(), Limits(tokens_per_day=100, tokens_per_month=150)
    tried = limiter(limits, clock, ledger)
    tried.begin("k", 90).settle(60)
    tried.begin("k", 30)  # under way when it is saved, and lost
    tried.save()
    again = limiter(limits, clock, ledger)
    again.save()
    assert again.standing("k").today == Usage(1, 60)
    assert refused(again, 50).code == "insufficient_quota"
    again.begin("k", 40).settle(40)
    again.save()
    assert ledger.since(NOON.date()) == {("k", NOON.date()): Usage(2, 100)}


def test_processes_see_what_others_used(ledger: UsageLedger) -> None:
    clock, limits = Clock(), Limits(tokens_per_day=100)
    here, there = (limiter(limits, clock, ledger) for _ in range(2))
    for each in (here, there, here, there):
        each.begin("k", 10).settle(10)
        each.save()
    here.begin("k", 5).settle(5)
    here.save()
    assert there.standing("k").today.tokens == 40  # not looked since
    there.save()
    assert here.standing("k").today == there.standing("k").today == Usage(5, 45)
    refused(here, 56)


def test_what_cannot_be_stored_is_kept(ledger: UsageLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = limiter(Limits(tokens_per_day=100), Clock(), ledger)
    tried.begin("k", 10).settle(10)
    with monkeypatch.context() as full:

        def fail(used: object) -> None:
            raise Unavailable("the disk is full")

        full.setattr(ledger, "add", fail)
        with pytest.raises(Unavailable):
            tried.save()
    tried.begin("k", 5).settle(5)
    tried.save()
    assert ledger.since(NOON.date()) == {("k", NOON.date()): Usage(2, 15)}
    assert tried.standing("k").today == Usage(2, 15)


def test_the_month_is_read_at_the_start(ledger: UsageLedger) -> None:
    ledger.add({("k", date(2026, 3, 2)): Usage(1, 7), ("k", date(2026, 2, 27)): Usage(1, 100)})
    tried = limiter(Limits(tokens_per_month=10), Clock(), ledger)
    tried.save()
    assert tried.standing("k").month == Usage(1, 7)
    tried.start()
    tried.begin("k", 3).settle(3)
    tried.stop()
    assert limiter(Limits(), Clock(), ledger).standing("k").month == Usage()
    assert ledger.since(date(2026, 3, 3), subject="k") == {("k", NOON.date()): Usage(1, 3)}


def test_hundred_requests_are_one_row(ledger: UsageLedger) -> None:
    tried = limiter(NO_LIMITS, Clock(), ledger)
    for _ in range(100):
        tried.begin("local", 2).settle(2)
    tried.save()
    with ledger._database.read() as connection:
        assert connection.execute(text("SELECT * FROM usage")).all() == [("local", "2026-03-31", 100, 200)]
