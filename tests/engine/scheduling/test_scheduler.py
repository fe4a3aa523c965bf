"""The scheduler without a model: admission, chunked prefill and preemption, as invariants under random traffic."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graftwork.server.engine.request import Pooling
from graftwork.server.engine.sequence import SequenceState
from tests.engine.scheduler_driver import Driver, ask, make


def test_a_prompt_is_computed_in_chunks_and_then_decoded() -> None:
    driver = Driver(make(step_tokens=16))
    driver.ask("a", 40, max_tokens=2)
    assert [driver.step() for _ in range(4)] == [[("a", 0, 16)], [("a", 16, 16)], [("a", 32, 8)], [("a", 40, 1)]]
    assert driver.finished == ["a"]


def test_decoding_never_waits_for_prompts() -> None:
    driver = Driver(make(step_tokens=8))
    driver.ask("short", 4, max_tokens=20)
    driver.step()
    driver.ask("long", 60, max_tokens=1)
    for _ in range(7):
        assert "short" in [request_id for request_id, _, _ in driver.step()]


def long_prompts(step_tokens: int = 256, max_sequences: int = 32) -> Driver:
    limits = {"max_length": 10_000, "cache_tokens": 100_000, "step_tokens": step_tokens, "max_sequences": max_sequences}
    return Driver(make(**limits), checked=False)


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    driver = long_prompts()
    driver.ask("long", 8000, max_tokens=1)
    driver.step()
    for index in range(20):
        driver.ask(f"short-{index}", 100, max_tokens=1)
        driver.step()
        driver.step()
        assert driver.first_token[f"short-{index}"] - driver.asked[f"short-{index}"] == 1
    driver.run()
    assert driver.ended["long"] <= 45  # of 40 steps' work in all


def test_a_long_prompt_is_not_starved_by_short_ones() -> None:
    """More short prompts than there is time for, without an end: the long one takes at most four times as long."""
    driver = long_prompts()
    driver.ask("long", 8000, max_tokens=1)
    number = itertools.count()
    while "long" not in driver.ended:
        for _ in range(4):
            driver.ask(f"short-{next(number)}", 100, max_tokens=1)
        driver.step()
    assert driver.ended["long"] <= 4 * 8000 / 256 + 1
    assert driver.num_computed == 256 * driver.steps  # nothing of the budget was left unused


def test_of_many_prompts_none_is_starved() -> None:
    """Overload: prompts of every length come faster than they can be computed. Everybody's turn comes, oldest first."""
    driver = long_prompts(step_tokens=64)
    rng = random.Random(3)
    lengths = {}
    for index in range(400):
        lengths[str(index)] = rng.choice([20, 20, 20, 50, 200, 1000])
        driver.ask(str(index), lengths[str(index)], max_tokens=1)
        driver.step()
    driver.run()
    work = 0
    for name, length in lengths.items():
        work += length
        # A quarter of each step is the oldest prompt's.
        assert driver.ended[name] <= 4 * work / 64 + 400
    short = [driver.ended[name] - driver.asked[name] for name, length in lengths.items() if length == 20]
    assert sorted(short)[len(short) // 2] <= 3


def test_places_are_taken_in_order_of_arrival() -> None:
    """A longer prompt that came first has its place before shorter ones that came later."""
    driver = long_prompts(max_sequences=2)
    driver.ask("a", 10, max_tokens=20)
    driver.ask("b", 10, max_tokens=30)
    driver.step()
    driver.ask("older", 2000, max_tokens=1)
    for index in range(10):
        driver.ask(f"younger-{index}", 10, max_tokens=10)
    while "a" not in driver.ended:
        driver.step()
    driver.step()
    assert {sequence.request.id for sequence in driver.scheduler.running} == {"b", "older"}
    driver.run()


def test_the_youngest_gives_way_when_the_cache_is_full_and_says_the_same_in_the_end() -> None:
    driver = Driver(make(max_sequences=3, cache_tokens=60, max_length=60, step_tokens=64))
    for name in "abc":
        driver.ask(name, 15, max_tokens=20)
    driver.run()
    assert driver.scheduler.num_preemptions > 0
    assert driver.finished[0] == "a"
    assert sorted(driver.finished) == ["a", "b", "c"]


def test_prompts_that_are_only_read_may_fill_the_cache_to_its_last_token() -> None:
    driver = Driver(make(max_sequences=2, cache_tokens=60, max_length=60, step_tokens=8))
    driver.ask("scored", 35, max_tokens=0, prompt_logprobs=0)
    driver.ask("pooled", 25, max_tokens=0, pooling="mean")
    driver.run()
    assert driver.scheduler.num_preemptions == 0
    assert driver.pooled["pooled"] == list(range(25))


def test_one_fetch_however_many_wait() -> None:
    scheduler = make()
    for index in range(5):
        scheduler.add(ask(str(index), 4, adapter="x"))
    assert [adapter.digest for adapter in scheduler.adapter_cache.pop_fetches()] == ["x"]
    assert scheduler.adapter_cache.pop_fetches() == []


def test_a_held_adapter_is_never_evicted() -> None:
    driver = Driver(make(pages=1))
    driver.ask("holder", 4, adapter="a", max_tokens=30)
    driver.step()
    driver.ask("other", 4, adapter="b")
    for _ in range(20):
        driver.step()
        assert driver.scheduler.adapter_cache.adapters["a"].tier == "device"
    driver.run()
    assert driver.finished == ["holder", "other"]


def test_a_cold_adapter_is_overtaken_only_so_often() -> None:
    """A stream of requests for a hot adapter on the only page; the cold one must get its turn."""
    driver = Driver(make(pages=1, max_sequences=2))
    driver.ask("hot-0", 2, adapter="hot", max_tokens=4)
    driver.step()
    driver.ask("cold", 2, adapter="cold", max_tokens=4)
    for index in range(1, 60):
        driver.ask(f"hot-{index}", 2, adapter="hot", max_tokens=4)
        driver.step()
        if "cold" in driver.finished:
            break
    assert "cold" in driver.finished
    assert len(driver.finished) < 20


def test_an_adapter_larger_than_its_rank_takes_more_pages() -> None:
    driver = Driver(make(pages=4), pages_of={"big": 4, "small": 1})
    driver.ask("1", 4, adapter="small")
    driver.run()
    driver.ask("2", 4, adapter="big")
    driver.run()
    assert len(driver.scheduler.adapter_cache.adapters["big"].pages) == 4
    assert driver.scheduler.adapter_cache.adapters["small"].tier == "host"


def test_finishing_in_any_state_gives_everything_back() -> None:
    driver = Driver(make(max_sequences=1))
    first = driver.ask("first", 40, adapter="a")
    waiting = driver.ask("waiting", 4, adapter="b")
    driver.step()
    for sequence in (waiting, first):
        driver.scheduler.finish(sequence)
    driver.check([])
    assert not len(driver.scheduler)
    assert all(
        adapter.num_running == adapter.num_waiting == 0 for adapter in driver.scheduler.adapter_cache.adapters.values()
    )


@pytest.mark.parametrize("seed", range(5))
@settings(max_examples=30)
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
    asked: dict[str, tuple[int, Pooling | None]] = {}
    aborted: set[str] = set()
    for index in range(40):
        for _ in range(rng.choice([0, 0, 1, 3])):
            name = f"{index}-{len(asked)}"
            adapter = rng.choice([None, *(f"x{i}" for i in range(6))])
            length, max_tokens = rng.randint(1, 39), rng.randint(0, 8)
            pooling: Pooling | None = None if max_tokens else rng.choice([None, "mean", "last"])
            scheduler.add(ask(name, length, adapter=adapter, max_tokens=max_tokens, pooling=pooling))
            asked[name] = length, pooling
        if rng.random() < 0.2 and len(scheduler):
            sequence: SequenceState = rng.choice(list(scheduler))
            scheduler.finish(sequence)
            aborted.add(sequence.request.id)
        driver.step()
    driver.run()
    assert sorted(driver.finished) == sorted(asked.keys() - aborted)
    for name in driver.finished:
        length, pooling = asked[name]
        wanted = {"mean": range(length), "last": range(length - 1, length), None: range(0)}
        assert driver.pooled.get(name, []) == list(wanted[pooling])
