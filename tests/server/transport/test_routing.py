"""The router: bounded load, few engines an adapter, little movement, the same everywhere."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftwork.server.transport.routing import RendezvousRouter

NAMES = [f"engine-{number}" for number in range(64)]


def all_of(router: RendezvousRouter) -> np.ndarray:
    return np.ones(len(router.members), dtype=bool)


def idle(router: RendezvousRouter) -> np.ndarray:
    return np.zeros(len(router.members), dtype=np.int64)


def test_an_adapter_stays_on_one_engine_and_adapters_spread() -> None:
    router = RendezvousRouter(NAMES)
    places = [router.choose(f"sha256:{number}", [number], idle(router), all_of(router)) for number in range(6400)]
    again = [router.choose(f"sha256:{number}", [7], idle(router), all_of(router)) for number in range(6400)]
    assert places == again
    assert max(Counter(places).values()) < 1.5 * 100


def test_an_engine_that_is_lost_moves_its_own_adapters_only_and_gets_them_back() -> None:
    router = RendezvousRouter(NAMES)
    usable = all_of(router)
    usable[5] = False
    for number in range(1000):
        before = router.choose(f"a{number}", [], idle(router), all_of(router))
        after = router.choose(f"a{number}", [], idle(router), usable)
        assert after != 5
        assert after == before or before == 5


def test_a_new_engine_takes_its_share_and_moves_nothing_else() -> None:
    few, more = RendezvousRouter(NAMES[:-1]), RendezvousRouter(NAMES)
    moved = 0
    for number in range(6400):
        before = few.choose(f"a{number}", [], idle(few), all_of(few))
        after = more.choose(f"a{number}", [], idle(more), all_of(more))
        if after != before:
            assert after == len(NAMES) - 1
            moved += 1
    assert 50 < moved < 150  # a 64th of them is 100


def test_the_order_of_names_means_nothing() -> None:
    one, other = RendezvousRouter(NAMES), RendezvousRouter(NAMES[::-1])
    for number in range(200):
        places = [router.choose(f"a{number}", [1], idle(router), all_of(router)) for router in (one, other)]
        assert one.members[places[0] or 0] == other.members[places[1] or 0]


def test_a_hot_adapter_has_as_many_engines_as_its_traffic_needs() -> None:
    router = RendezvousRouter(NAMES)
    loads = np.full(len(NAMES), 10, dtype=np.int64)
    for num_open, expected in ((0, 1), (2, 1), (10, 4), (40, 16), (160, 64)):
        places = {router.choose("hot", [n], loads, all_of(router), num_open=num_open) for n in range(2000)}
        assert len(places) == expected


def test_the_same_first_tokens_choose_the_same_engine() -> None:
    router = RendezvousRouter(NAMES)
    loads = np.full(len(NAMES), 10, dtype=np.int64)
    opening = list(range(40))
    for adapter, num_open in (("hot", 20), (None, 0)):
        places = {router.choose(adapter, [*opening, n], loads, all_of(router), num_open=num_open) for n in range(100)}
        assert len(places) == 1
    # Unless that engine is busier than others.
    (place,) = places
    assert place is not None
    loads[place] += 5
    assert router.choose(None, opening, loads, all_of(router)) != place


def test_no_engine_no_choice() -> None:
    router = RendezvousRouter(NAMES[:2])
    nothing = np.zeros(2, dtype=bool)
    assert router.choose("a", [1], idle(router), nothing) is None
    assert router.choose(None, [1], idle(router), nothing) is None
    assert router.home("a", nothing) is None


@pytest.mark.parametrize(("names", "bound"), [(["a", "a"], 1.25), (["a"], 1.0)])
def test_routers_that_cannot_be(names: list[str], bound: float) -> None:
    with pytest.raises(ValueError, match=r"engines with one name|cannot be kept"):
        RendezvousRouter(names, bound=bound)


@given(
    loads=st.lists(st.tuples(st.integers(0, 50), st.booleans()), min_size=1, max_size=40),
    adapter=st.none() | st.text(max_size=8),
    num_open=st.integers(0, 500),
    prompt=st.lists(st.integers(0, 1 << 17), max_size=40),
    bound=st.sampled_from([1.25, 2.0]),
)
def test_the_chosen_engine_is_usable_and_its_load_is_bounded(
    loads: list[tuple[int, bool]], adapter: str | None, num_open: int, prompt: list[int], bound: float
) -> None:
    router = RendezvousRouter([str(number) for number in range(len(loads))], bound=bound)
    numbers = np.array([load for load, _ in loads], dtype=np.int64)
    usable = np.array([is_usable for _, is_usable in loads], dtype=bool)
    place = router.choose(adapter, prompt, numbers, usable, num_open=num_open)
    if not usable.any():
        assert place is None
        return
    assert place is not None
    assert usable[place]
    mean = numbers[usable].mean() + 1 / usable.sum()
    assert numbers[place] + 1 <= np.ceil(bound * mean)


@given(requests=st.lists(st.integers(0, 20).map(lambda n: n * n // 20), min_size=1, max_size=300))
def test_under_any_traffic_the_busiest_engine_is_bounded(requests: list[int]) -> None:
    router = RendezvousRouter(NAMES[:8])
    loads, counts = idle(router), Counter[int]()
    for adapter in requests:
        place = router.choose(str(adapter), [], loads, all_of(router), num_open=counts[adapter])
        assert place is not None
        loads[place] += 1
        counts[adapter] += 1
    assert loads.max() <= np.ceil(2 * loads.mean())


def test_every_process_decides_alike() -> None:
    program = """
import json, numpy as np
from graftwork.server.transport.routing import RendezvousRouter
router = RendezvousRouter([f"engine-{n}" for n in range(64)])
loads = np.full(64, 10, dtype=np.int64)
usable = np.ones(64, dtype=bool)
ask = lambda a, n: router.choose(a, [n, 2], loads, usable, num_open=50)
print(json.dumps([ask(f"a{n}", n) for n in range(50)] + [ask(None, n) for n in range(50)]))
"""
    one, two = (
        json.loads(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout)
        for _ in range(2)
    )
    assert one == two
    assert len(set(one)) > 20
