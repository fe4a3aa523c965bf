"""Tenants share an engine: what each gets of its places, its prompt budget and its cache, in runs without a model."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graftwork.server.engine.scheduler import QUANTUM, SLICE, Scheduler
from graftwork.server.engine.sequence import ScheduledTokens
from tests.engine.scheduler_driver import Driver, make


class SharedDriver(Driver):
    """Also counts what was computed for each tenant."""

    def __init__(self, scheduler: Scheduler, *, checked: bool = False) -> None:
        super().__init__(scheduler, checked=checked)
        self.served: Counter[str] = Counter()
        self._asked = itertools.count()

    def _compute(self, item: ScheduledTokens) -> None:
        self.served[item.sequence.request.tenant] += item.count
        super()._compute(item)

    def flood(self, name: str, count: int, prompt: int = 20, max_tokens: int = 2000, **options: object) -> None:
        for index in range(count):
            self.ask(f"{name}-{index}", prompt, max_tokens=max_tokens, tenant=name, **options)

    def keep(self, names: str, count: int, prompt: int = 20, max_tokens: int = 100) -> None:
        """Ask until each of these tenants has so many open answers."""
        is_open = Counter(sequence.request.tenant for sequence in self.scheduler)
        for name in names:
            for _ in range(count - is_open[name]):
                self.ask(f"{name}-{next(self._asked)}", prompt, max_tokens=max_tokens, tenant=name)

    def places(self) -> Counter[str]:
        return Counter(sequence.request.tenant for sequence in self.scheduler.running)

    def steps_of(self, count: int) -> None:
        for _ in range(count):
            self.step()


def shared(max_sequences: int = 8, **limits: int) -> SharedDriver:
    usual = {"max_length": 4096, "cache_tokens": 100_000, "step_tokens": 256, "num_slots": 4 * max_sequences}
    return SharedDriver(make(max_sequences=max_sequences, **{**usual, **limits}))


def test_one_tenants_long_streams_do_not_keep_another_waiting() -> None:
    driver = shared()
    driver.flood("flood", 300)
    driver.steps_of(100)
    assert driver.places() == {"flood": 8}
    for index in range(20):
        driver.ask(f"small-{index}", 30, max_tokens=10, tenant="small")
        while f"small-{index}" not in driver.ended:
            driver.step()
        assert driver.first_token[f"small-{index}"] - driver.asked[f"small-{index}"] <= QUANTUM
    assert driver.places()["flood"] >= 7  # no place is kept empty
    assert not driver.finished[20:]


def test_alone_a_tenant_gets_everything_and_owes_nothing_for_it() -> None:
    driver = shared()
    driver.flood("early", 20)
    driver.steps_of(1000)
    assert driver.scheduler.num_preemptions == 0
    driver.flood("late", 20)
    driver.steps_of(2 * QUANTUM)
    assert driver.places() == {"early": 4, "late": 4}
    before = Counter(driver.served)
    driver.steps_of(200)
    assert abs((driver.served - before)["early"] - (driver.served - before)["late"]) <= SLICE


@pytest.mark.parametrize("shared_by", ["tenants", "adapters"])
def test_a_newcomer_shares_with_the_busy_one_beside_one_that_always_has_an_answer_open(shared_by: str) -> None:
    """The light one had little, but never waited for more: the newcomer has no claim to what the busy one had."""
    driver = shared(4)
    numbers, computed = itertools.count(), Counter()

    def keep(who: str, count: int, max_tokens: int) -> None:
        tenant, adapter = (who, None) if shared_by == "tenants" else ("", who)
        is_open = sum((s.request.tenant, s.request.adapter) == (tenant, adapter) for s in driver.scheduler)
        for _ in range(count - is_open):
            driver.ask(f"{who}-{next(numbers)}", 8, adapter, max_tokens=max_tokens, tenant=tenant)

    def step(busy: list[str]) -> None:
        keep("light", 1, 4000)
        for who in busy:
            keep(who, 8, 100)
        computed.update(request_id.partition("-")[0] for request_id, _, _ in driver.step())

    for _ in range(3000):
        step(["busy"])
    computed.clear()
    for _ in range(600):
        step(["busy", "new"])
    assert computed["light"] >= 500
    assert abs(computed["busy"] - computed["new"]) <= SLICE


def test_preemption_ends_when_shares_are_equal() -> None:
    driver = shared()
    driver.flood("a", 20, max_tokens=4000)
    driver.flood("b", 20, max_tokens=4000)
    driver.steps_of(2 * QUANTUM)
    before = driver.scheduler.num_preemptions
    driver.steps_of(1000)
    assert driver.scheduler.num_preemptions == before
    assert driver.num_computed - 8 * driver.steps <= 40 * 20  # only prompts beside: nothing was computed twice


def test_what_was_preempted_says_the_same_in_the_end() -> None:
    driver = SharedDriver(make(max_sequences=2, cache_tokens=400, max_length=200), checked=True)
    driver.flood("a", 3, prompt=10, max_tokens=80)
    driver.steps_of(50)
    driver.flood("b", 3, prompt=10, max_tokens=80)
    driver.run()
    assert driver.scheduler.num_preemptions > 0
    assert {len(said) for said in driver.said.values()} == {80}


def test_more_tenants_than_places_take_turns() -> None:
    driver = shared(max_sequences=2)
    for name in "abcde":
        driver.flood(name, 2, max_tokens=4000)
    driver.steps_of(3000)
    assert max(driver.served.values()) - min(driver.served.values()) <= SLICE + QUANTUM
    assert driver.scheduler.num_preemptions <= 2 * 3000 / SLICE + 10


def test_one_place_is_shared_in_time() -> None:
    driver = shared(max_sequences=1)
    driver.flood("flood", 5, max_tokens=4000)
    driver.steps_of(10)
    driver.ask("small", 10, max_tokens=5, tenant="small")
    driver.steps_of(SLICE + 30)
    assert driver.finished == ["small"]


def test_weights_are_shares_of_the_places() -> None:
    driver = shared()
    driver.flood("one", 20, max_tokens=4000)
    driver.flood("three", 20, max_tokens=4000, weight=3.0)
    driver.steps_of(4 * QUANTUM)
    assert driver.places() == {"one": 2, "three": 6}


def test_one_adapters_burst_leaves_places_to_the_tenants_other_adapters() -> None:
    driver = shared()
    driver.flood("burst", 50, adapter="x")
    driver.steps_of(100)
    driver.ask("other", 30, adapter="y", max_tokens=10, tenant="burst")
    driver.steps_of(QUANTUM + 20)
    assert driver.finished == ["other"]


def test_many_short_prompts_of_one_tenant_do_not_starve_anothers_long_one() -> None:
    """Half of each step is the long prompt's, not only the oldest one's quarter."""
    driver = shared(max_sequences=32, max_length=10_000)
    number = itertools.count()
    driver.ask("long", 8000, max_tokens=1, tenant="b")
    while "long" not in driver.ended:
        for _ in range(4):
            driver.ask(f"short-{next(number)}", 100, max_tokens=1, tenant="a")
        driver.step()
    assert driver.ended["long"] <= 2 * 8000 / 256 + 2
    assert driver.num_computed == 256 * driver.steps


def test_when_the_cache_is_full_the_tenant_that_holds_most_gives_way() -> None:
    driver = shared(cache_tokens=1000, max_length=1000)
    driver.flood("flood", 8, prompt=100, max_tokens=800)
    driver.steps_of(2 * QUANTUM)
    driver.ask("small", 150, max_tokens=40, tenant="small")
    driver.steps_of(QUANTUM + 60)
    assert driver.finished == ["small"]


def test_several_pause_at_once_for_one_that_needs_the_room_of_all_of_them() -> None:
    driver = shared(16, max_length=1000, cache_tokens=1200)
    driver.flood("flood", 8, prompt=60, max_tokens=400)
    driver.steps_of(60)
    driver.ask("large", 420, max_tokens=5, tenant="b")
    driver.step()
    assert driver.places() == {"flood": 8}  # nobody has had more yet than the newcomer begins with
    driver.step()
    assert driver.places() == {"flood": 6, "b": 1}


def test_nobody_pauses_for_one_that_would_still_find_no_room() -> None:
    """The flood has something to give, but too little, and who holds the rest has no more than its share."""
    driver = shared(16, max_length=1000, cache_tokens=1200)
    driver.flood("flood", 4, prompt=60, max_tokens=400)
    driver.flood("fair", 1, prompt=300, max_tokens=500)
    driver.steps_of(60)
    driver.ask("large", 420, max_tokens=5, tenant="b")
    driver.steps_of(50)
    assert driver.scheduler.num_preemptions == 0
    driver.run()


def test_a_long_prompt_keeps_its_place_in_a_full_cache_though_its_tenant_holds_most() -> None:
    driver = shared(32, max_length=5000, cache_tokens=8000, step_tokens=64)
    driver.keep("bcde", 8, prompt=30, max_tokens=300)
    driver.steps_of(300)
    driver.ask("long", 4500, max_tokens=50, tenant="a")
    while "long" not in driver.ended:
        driver.keep("bcde", 8, prompt=30, max_tokens=300)
        driver.step()
        assert driver.steps < 1200
    assert driver.served["a"] <= 2 * (4500 + 50)  # it may pause when it has had its quantum, not in its prompt


def test_a_tenants_adapter_finds_a_place_on_the_device_before_the_others_next_ones() -> None:
    driver = shared(pages=2)
    for index in range(20):
        driver.ask(f"many-{index}", 10, adapter=f"x{index}", max_tokens=30, tenant="many")
    driver.steps_of(5)
    driver.ask("one", 10, adapter="y", max_tokens=5, tenant="one")
    while "one" not in driver.ended:
        driver.step()
    assert len(driver.finished) <= 3  # the two that ran already, and it


def test_adapters_in_use_by_one_tenants_long_streams_make_room_for_anothers() -> None:
    driver = shared(pages=4)
    for index in range(40):
        driver.ask(f"flood-{index}", 10, adapter=f"x{index}", max_tokens=4000, tenant="flood")
    driver.steps_of(50)
    assert len(driver.scheduler.running) == 4
    for index in range(5):
        driver.ask(f"small-{index}", 10, adapter="y", max_tokens=20, tenant="small")
        driver.steps_of(QUANTUM + 40)
        assert driver.finished[-1] == f"small-{index}"
    assert len(driver.scheduler.running) == 4


def test_a_large_adapter_finds_room_among_small_ones_of_another_tenant() -> None:
    driver = shared(pages=8)
    driver.pages_of["big"] = 3
    for index in range(40):
        driver.ask(f"flood-{index}", 10, adapter=f"x{index}", max_tokens=4000, tenant="flood")
    driver.steps_of(50)
    driver.ask("small", 10, adapter="big", max_tokens=20, tenant="small")
    driver.steps_of(QUANTUM + 40)
    assert driver.finished == ["small"]


@pytest.mark.parametrize(
    ("num_adapters", "needed", "pages"),
    [
        (2, 3, 6),  # two are free, and one adapter makes room for the third
        (3, 3, 8),
        (2, 2, 6),  # two are free, and nobody has to pause
    ],
)
def test_free_pages_count_when_adapters_make_room_for_anothers(num_adapters: int, needed: int, pages: int) -> None:
    driver = shared(pages=pages)
    driver.pages_of = {"x0": 2, "x1": 2, "x2": 2, "y": needed}
    for index in range(num_adapters):
        driver.ask(f"flood-{index}", 10, adapter=f"x{index}", max_tokens=4000, tenant="flood")
    driver.steps_of(50)
    driver.ask("small", 10, adapter="y", max_tokens=20, tenant="small")
    driver.steps_of(QUANTUM + 40)
    assert driver.finished == ["small"]
    assert driver.scheduler.num_preemptions == (needed > 2)


@settings(max_examples=25)
@given(
    num_places=st.sampled_from([1, 2, 5, 8]),
    num_tenants=st.integers(2, 6),
    step_tokens=st.sampled_from([16, 64, 256]),
    seed=st.integers(0, 10**6),
)
def test_backlogged_tenants_are_served_alike_and_nothing_idles(
    num_places: int, num_tenants: int, step_tokens: int, seed: int
) -> None:
    """Whatever they ask, served tokens differ by no more than a slice, a step and a quantum of each place."""
    rng, numbers = random.Random(seed), itertools.count()
    names = "abcdef"[:num_tenants]
    driver = shared(max_sequences=num_places, max_length=800, step_tokens=step_tokens)
    for _ in range(400):
        waiting = Counter(sequence.request.tenant for sequence in driver.scheduler.waiting)
        for name in names:
            while waiting[name] < 2 * num_places:
                waiting[name] += 1
                driver.ask(str(next(numbers)), rng.randint(1, 200), max_tokens=rng.randint(1, 300), tenant=name)
        work = driver.step()
        assert len(work) == num_places or sum(count for _, _, count in work) >= step_tokens
        served = [driver.served[name] for name in names]
        assert max(served) - min(served) <= SLICE + step_tokens + QUANTUM * num_places


@settings(max_examples=12)
@given(seed=st.integers(0, 10**6))
def test_random_traffic_of_many_tenants_ends_and_keeps_every_promise(seed: int) -> None:
    """With adapters, little memory, weights and clients that leave, whoever is preempted for whom."""
    rng = random.Random(seed)
    limits = {"max_length": 140, "cache_tokens": rng.choice([150, 300, 2000]), "step_tokens": rng.choice([7, 64])}
    scheduler = make(max_sequences=rng.choice([1, 2, 4]), pages=rng.choice([2, 3]), num_slots=8, **limits)
    driver = SharedDriver(scheduler, checked=True)
    driver.pages_of.update({f"x{number}": rng.choice([1, 1, 2]) for number in range(4)})
    asked: dict[str, int] = {}
    for step in range(250):
        for tenant in "abc":
            if rng.random() < 0.05:
                name, adapter = f"{tenant}-{step}", rng.choice([None, *(f"x{number}" for number in range(4))])
                asked[name] = rng.choice([0, 5, 50, 80])
                options = {"adapter": adapter, "max_tokens": asked[name], "cache_salt": tenant}
                driver.ask(name, rng.randint(1, 50), tenant=tenant, weight=rng.choice([1.0, 3.0]), **options)
        if rng.random() < 0.02 and len(scheduler):
            sequence = rng.choice(list(scheduler))
            scheduler.finish(sequence)
            del asked[sequence.request.id]
        driver.step()
    driver.run()
    assert {name: len(driver.said.get(name, ())) for name in driver.finished} == asked
    assert not len(scheduler.waiting)
    assert not scheduler.waiting.is_shared
