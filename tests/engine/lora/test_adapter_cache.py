"""The adapter cache under pressure: placement, eviction, and no starvation; without a model."""

from __future__ import annotations

import random

import pytest

from graftwork.server.engine.lora.adapter_cache import LOAD_BYTES_PER_STEP, AdapterCache
from tests.engine.scheduler_driver import Driver, make


def resident(num_pages: int = 4, host_bytes: int = 1000) -> AdapterCache:
    return AdapterCache(num_pages=num_pages, host_bytes=host_bytes)


def fetch(residency: AdapterCache, *digests: str, num_bytes: int = 10, num_pages: int = 1) -> None:
    for digest in digests:
        residency.add_waiting(digest)
    for seat in residency.pop_fetches():
        residency.mark_fetched(seat.digest, num_pages=num_pages, num_bytes=num_bytes, load_ms=1.0)


def on_device(residency: AdapterCache) -> set[str]:
    return {seat.digest for seat in residency.adapters.values() if seat.tier == "device"}


def test_an_adapter_that_nobody_waits_for_any_more_is_not_read() -> None:
    residency = resident()
    residency.add_waiting("a")
    residency.remove_waiting("a")
    assert residency.pop_fetches() == []
    residency.add_waiting("a")
    assert [seat.digest for seat in residency.pop_fetches()] == ["a"]


def test_the_host_forgets_the_least_recently_used_that_nobody_wants() -> None:
    residency = resident(host_bytes=30)
    fetch(residency, "a", "b", "c", "d", "e")
    for digest in ("a", "b", "c"):
        residency.remove_waiting(digest)
    residency.swap(["d", "e"])
    assert [seat.digest for seat in residency.swap([]).dropped] == []
    assert sorted(residency.adapters) == ["c", "d", "e"]
    residency.check_integrity()


def test_little_is_moved_at_once_beside_running_sequences() -> None:
    residency = resident(num_pages=8)
    digests = [str(index) for index in range(8)]
    fetch(residency, *digests, num_bytes=LOAD_BYTES_PER_STEP // 3)
    assert len(residency.swap(digests, hurried=True).loaded) == 3
    assert len(residency.swap(digests, hurried=True).loaded) == 3
    assert len(residency.swap(digests, hurried=False).loaded) == 2
    fetch(residency, "large", num_bytes=2 * LOAD_BYTES_PER_STEP)
    assert [seat.digest for seat in residency.swap(["large"], hurried=True).loaded] == ["large"]


def test_the_adapter_nearest_to_idle_is_closed_for_one_that_starves() -> None:
    residency = resident(num_pages=3)
    fetch(residency, "a", "b", "c")
    residency.swap(["a", "b", "c"])
    holders = [residency.acquire(digest) for digest in "aabcc"]
    residency.add_waiting("b")
    fetch(residency, "cold")
    residency.swap(["cold", "b"])
    assert all(map(residency.is_available, "abc"))  # nobody is closed before somebody starves
    residency.swap(["cold", "b"], ["cold"])
    assert [digest for digest in "abc" if not residency.is_available(digest)] == ["b"]
    residency.release(holders[2])
    assert [seat.digest for seat in residency.swap(["cold", "b"], ["cold"]).loaded] == ["cold"]
    assert on_device(residency) == {"a", "c", "cold"}
    residency.check_integrity()


def test_who_is_closed_stays_closed_until_the_room_is_made_or_not_needed() -> None:
    residency = resident(num_pages=2)
    fetch(residency, "a", "b")
    residency.swap(["a", "b"])
    seats = [residency.acquire(digest) for digest in "ab"]
    fetch(residency, "cold")
    residency.swap(["cold"], ["cold"])
    (closed,) = [seat for seat in seats if seat.draining]
    closed.num_running += 5  # the other is nearer to idle now, but what was begun is carried through
    residency.swap(["cold"], ["cold"])
    assert closed.draining
    residency.swap([])
    assert not closed.draining


def test_room_made_for_a_large_adapter_goes_to_nobody_younger() -> None:
    residency = resident(num_pages=4)
    fetch(residency, "a", "b", "c", "d")
    residency.swap(["a", "b", "c", "d"])
    seats = {digest: residency.acquire(digest) for digest in "abcd"}
    fetch(residency, "large", num_pages=4)
    fetch(residency, "small")
    for digest in "abcd":
        assert residency.swap(["large", "small"], ["large"]).loaded == []
        residency.release(seats[digest])
    assert [seat.digest for seat in residency.swap(["large", "small"], ["large"]).loaded] == ["large"]


class Clients:
    """In a closed loop: each asks an adapter drawn by weight, and when it has its answer, the next."""

    def __init__(self, count: int, adapters: int, slots: int, *, zipf: float, max_sequences: int = 32) -> None:
        scheduler = make(
            max_sequences=max_sequences,
            max_length=400,
            cache_tokens=50_000,
            step_tokens=256,
            pages=slots,
            num_slots=2 * max_sequences,
            max_overtakes=16,
            host_bytes=10 * 2 * adapters,
        )
        self.driver = Driver(scheduler, fetch_steps=2, checked=False)
        self.rng = random.Random(1)
        self.adapters = [f"a{index}" for index in range(adapters)]
        self.weights = [1 / (index + 1) ** zipf for index in range(adapters)]
        for _ in range(count):
            self.ask()

    def ask(self, adapter: str | None = None) -> None:
        (chosen,) = self.rng.choices(self.adapters, self.weights)
        name = f"r{len(self.driver.asked)}"
        self.driver.ask(name, self.rng.randint(20, 90), adapter=adapter or chosen, max_tokens=self.rng.randint(16, 64))

    def run(self, steps: int) -> None:
        for _ in range(steps):
            before = len(self.driver.ended)
            self.driver.step()
            for _ in range(len(self.driver.ended) - before):
                self.ask()

    @property
    def tokens_per_step(self) -> float:
        return sum(map(len, self.driver.said.values())) / self.driver.steps

    @property
    def waits(self) -> list[int]:
        """Steps to the first token, also of those that have none yet."""
        driver = self.driver
        return sorted(driver.first_token.get(name, driver.steps) - asked for name, asked in driver.asked.items())


@pytest.mark.parametrize("zipf", [0.0, 1.0])
def test_no_cliff_where_the_working_set_outgrows_the_slots(zipf: float) -> None:
    """Half, one, two and four times the slots, 16 clients: everybody gets a place, within some steps."""
    speed = {}
    for times in (0.5, 1, 2, 4):
        clients = Clients(16, int(16 * times), 16, zipf=zipf)
        clients.run(600)
        speed[times] = clients.tokens_per_step
        assert clients.waits[-1] <= 15
        clients.driver.scheduler.adapter_cache.check_integrity()
    assert speed[4] > 0.97 * speed[0.5]


def test_more_clients_than_slots_wait_by_turns() -> None:
    """32 clients on 8 slots: as many adapters run as there are slots, and nobody waits for more than some turns."""
    for adapters, zipf, least, longest in (
        (8, 0.0, 30.0, 15),
        (16, 0.0, 15.0, 150),
        (32, 0.0, 10.0, 200),
        (32, 1.0, 12.0, 200),
    ):
        clients = Clients(32, adapters, 8, zipf=zipf)
        clients.run(1200)
        assert clients.tokens_per_step > least
        assert clients.waits[-1] < longest


def test_a_cold_adapter_beside_adapters_without_a_pause() -> None:
    """Every slot is in use all the time, by two or more; every 50 steps somebody asks an adapter that is not there."""
    clients = Clients(32, 4, 4, zipf=0.0)
    driver = clients.driver
    asked = []
    for index in range(12):
        clients.run(50)
        asked.append(f"r{len(driver.asked)}")
        clients.ask(f"cold-{index}")
    clients.run(200)
    waits = [driver.first_token[name] - driver.asked[name] for name in asked]
    assert max(waits) < 130  # some 16 younger ones, and the longest answer of an adapter, 64 steps
    assert clients.tokens_per_step > 25


def test_a_resident_adapter_serves_its_queue_before_it_goes() -> None:
    """Requests of two adapters in turn on one slot: not a move for each of them."""
    scheduler = make(max_sequences=4, max_length=100, cache_tokens=1000, pages=1, max_overtakes=6)
    driver = Driver(scheduler)
    for index in range(40):
        driver.ask(str(index), 5, adapter="xy"[index % 2], max_tokens=3)
    driver.run()
    assert len(driver.loaded) <= 8
