"""Admission, chunking, preemption and seats, without a model: every promise as an invariant under random traffic."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graftwork.server.engine.request import Request, SamplingParams
from graftwork.server.engine.residency import Residency
from graftwork.server.engine.scheduler import Limits, Scheduler, Sequence


def make(
    max_sequences: int = 4, max_length: int = 64, cache_tokens: int = 128, step_tokens: int = 16, pages: int = 4
) -> Scheduler:
    limits = Limits(
        max_sequences=max_sequences,
        max_length=max_length,
        cache_tokens=cache_tokens,
        step_tokens=step_tokens,
        max_overtakes=5,
    )
    return Scheduler(limits, Residency(num_pages=pages, host_bytes=1000))


def ask(request_id: str, num_tokens: int, adapter: str | None = None, max_tokens: int = 8) -> Request:
    return Request(
        id=request_id, prompt=tuple(range(num_tokens)), adapter=adapter, sampling=SamplingParams(max_tokens=max_tokens)
    )


class Driver:
    """Plays the engine: fetches at once (or not), computes by counting, ends sequences at max_tokens."""

    def __init__(self, scheduler: Scheduler, pages_of: dict[str, int] | None = None) -> None:
        self.scheduler = scheduler
        self.pages_of = pages_of or {}
        self.finished: list[str] = []
        self.steps = 0

    def step(self) -> list[tuple[str, int, int]]:
        scheduler, residency = self.scheduler, self.scheduler.residency
        for seat in residency.to_fetch():
            residency.arrived(seat.digest, num_pages=self.pages_of.get(seat.digest, 1), num_bytes=10, load_ms=1.0)
        residency.move(scheduler.wanted_adapters())
        work = scheduler.schedule()
        self.check(work)
        done = [(w.sequence.request.id, w.start, w.count) for w in work]
        for item in work:
            completes = item.completes
            item.sequence.num_computed = item.start + item.count
            if completes:
                item.sequence.tokens.append(0)
                full = len(item.sequence.tokens) >= min(scheduler.limits.max_length, scheduler.limits.cache_tokens)
                if full or item.sequence.num_generated >= item.sequence.request.sampling.max_tokens:
                    scheduler.finish(item.sequence)
                    self.finished.append(item.sequence.request.id)
        self.steps += 1
        return done

    def check(self, work: list[object]) -> None:
        scheduler, limits = self.scheduler, self.scheduler.limits
        slots = [s.slot for s in scheduler.running]
        assert len(set(slots)) == len(slots)
        assert None not in slots
        assert all(s.slot is None and s.seat is None for s in scheduler.waiting)
        assert sum(len(s.tokens) for s in scheduler.running) <= limits.cache_tokens
        assert len(scheduler.running) <= limits.max_sequences
        for sequence in scheduler.running:
            if sequence.request.adapter is not None:
                assert sequence.seat is not None
                assert sequence.seat.tier == "device"
        prompt_tokens = sum(w.count for w in work if not w.sequence.decoding)  # type: ignore[attr-defined]
        assert prompt_tokens <= limits.step_tokens
        for seat in scheduler.residency.seats.values():
            assert seat.holders == sum(s.seat is seat for s in scheduler.running)
            assert seat.wanted == sum(s.request.adapter == seat.digest for s in scheduler.waiting)
        scheduler.residency.check_integrity()

    def run(self, limit: int = 5000) -> None:
        while len(self.scheduler) and self.steps < limit:
            self.step()
        assert not len(self.scheduler), "starved"


def test_a_prompt_is_computed_in_chunks_and_then_decoded() -> None:
    driver = Driver(make(step_tokens=16))
    driver.scheduler.add(ask("a", 40, max_tokens=2))
    assert [driver.step() for _ in range(4)] == [[("a", 0, 16)], [("a", 16, 16)], [("a", 32, 8)], [("a", 40, 1)]]
    assert driver.finished == ["a"]


def test_decoding_never_waits_for_prompts() -> None:
    driver = Driver(make(step_tokens=8))
    driver.scheduler.add(ask("short", 4, max_tokens=20))
    driver.step()
    driver.scheduler.add(ask("long", 60, max_tokens=1))
    for _ in range(7):
        assert "short" in [request_id for request_id, _, _ in driver.step()]


def test_the_youngest_gives_way_when_the_cache_is_full_and_says_the_same_in_the_end() -> None:
    driver = Driver(make(max_sequences=3, cache_tokens=60, max_length=60, step_tokens=64))
    for name in "abc":
        driver.scheduler.add(ask(name, 15, max_tokens=20))
    driver.run()
    assert driver.scheduler.num_preemptions > 0
    assert driver.finished[0] == "a"
    assert sorted(driver.finished) == ["a", "b", "c"]


def test_one_fetch_however_many_wait() -> None:
    scheduler = make()
    for index in range(5):
        scheduler.add(ask(str(index), 4, adapter="x"))
    assert [seat.digest for seat in scheduler.residency.to_fetch()] == ["x"]
    assert scheduler.residency.to_fetch() == []


def test_a_held_adapter_is_never_evicted() -> None:
    driver = Driver(make(pages=1))
    driver.scheduler.add(ask("holder", 4, adapter="a", max_tokens=30))
    driver.step()
    driver.scheduler.add(ask("other", 4, adapter="b"))
    for _ in range(20):
        driver.step()
        assert driver.scheduler.residency.seats["a"].tier == "device"
    driver.run()
    assert driver.finished == ["holder", "other"]


def test_a_cold_adapter_is_overtaken_only_so_often() -> None:
    """A stream of requests for a hot adapter on the only page; the cold one must get its turn."""
    driver = Driver(make(pages=1, max_sequences=2))
    driver.scheduler.add(ask("hot-0", 2, adapter="hot", max_tokens=4))
    driver.step()
    driver.scheduler.add(ask("cold", 2, adapter="cold", max_tokens=4))
    for index in range(1, 60):
        driver.scheduler.add(ask(f"hot-{index}", 2, adapter="hot", max_tokens=4))
        driver.step()
        if "cold" in driver.finished:
            break
    assert "cold" in driver.finished
    assert len(driver.finished) < 20


def test_an_adapter_larger_than_its_rank_takes_more_pages() -> None:
    driver = Driver(make(pages=4), pages_of={"big": 4, "small": 1})
    driver.scheduler.add(ask("1", 4, adapter="small"))
    driver.run()
    driver.scheduler.add(ask("2", 4, adapter="big"))
    driver.run()
    assert len(driver.scheduler.residency.seats["big"].pages) == 4
    assert driver.scheduler.residency.seats["small"].tier == "host"


def test_finishing_in_any_state_gives_everything_back() -> None:
    driver = Driver(make(max_sequences=1))
    first = driver.scheduler.add(ask("first", 40, adapter="a"))
    waiting = driver.scheduler.add(ask("waiting", 4, adapter="b"))
    driver.step()
    for sequence in (waiting, first):
        driver.scheduler.finish(sequence)
    driver.check([])
    assert not len(driver.scheduler)
    assert all(seat.holders == seat.wanted == 0 for seat in driver.scheduler.residency.seats.values())


@pytest.mark.parametrize("seed", range(5))
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_random_traffic_ends_and_keeps_every_promise(seed: int, data: st.DataObject) -> None:
    rng = random.Random(data.draw(st.integers(0, 10**6)) + seed)
    pages = rng.choice([2, 3, 8])
    scheduler = make(
        max_sequences=rng.choice([1, 3, 8]),
        max_length=40,
        cache_tokens=rng.choice([40, 70, 300]),
        step_tokens=rng.choice([1, 7, 64]),
        pages=pages,
    )
    driver = Driver(scheduler, pages_of={f"x{i}": rng.choice([1, 1, 2]) for i in range(6)})
    asked: set[str] = set()
    aborted: set[str] = set()
    for index in range(40):
        for _ in range(rng.choice([0, 0, 1, 3])):
            name = f"{index}-{len(asked)}"
            adapter = rng.choice([None, *(f"x{i}" for i in range(6))])
            scheduler.add(ask(name, rng.randint(1, 39), adapter=adapter, max_tokens=rng.randint(1, 8)))
            asked.add(name)
        if rng.random() < 0.2 and len(scheduler):
            sequence: Sequence = rng.choice(list(scheduler))
            scheduler.finish(sequence)
            aborted.add(sequence.request.id)
        driver.step()
    driver.run()
    assert sorted(driver.finished) == sorted(asked - aborted)
