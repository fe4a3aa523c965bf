"""Whose turn it is, beside an obvious oracle: one server that computes one token at a time for whoever had least."""

from __future__ import annotations

import random
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftwork.server.engine.fair_queue import FairQueue, Flow, TokenCounter, TokenCounters, owes
from graftwork.server.engine.kv.prefix_cache import Prefix
from graftwork.server.engine.sequence import SequenceState
from tests.engine.scheduler_driver import ask

NAMES = ("a", "b", "c", "d")


def sequence(
    index: int, tenant: str = "a", adapter: str | None = None, length: int = 4, weight: float = 1.0
) -> SequenceState:
    request = ask(f"{tenant}-{index}", length, adapter=adapter, tenant=tenant, weight=weight)
    tokens = list(request.prompt)
    return SequenceState(request, index, tokens, Prefix(adapter, tokens), random.Random(0))


def everywhere(_: str | None) -> bool:
    return True


class ObviousShares:
    """Counters that are never forgotten, in fractions, looked through from the start each time."""

    def __init__(self) -> None:
        self.served: dict[str, Fraction] = {}
        self.waiting: Counter[str] = Counter()
        self.running: Counter[str] = Counter()

    def present(self) -> list[str]:
        return [name for name in NAMES if self.waiting[name] + self.running[name]]

    def join(self, name: str) -> None:
        if not self.present():
            self.served.clear()
        self.served.setdefault(name, Fraction(0))
        self._wait(name)

    def admit(self, name: str) -> None:
        self.waiting[name] -= 1
        self.running[name] += 1

    def preempt(self, name: str) -> None:
        self._wait(name)
        self.running[name] -= 1

    def end(self, name: str) -> None:
        self.running[name] -= 1

    def _wait(self, name: str) -> None:
        waiting = [self.served[other] for other in self.present() if self.waiting[other]]
        present = [self.served[other] for other in self.present()]
        if not self.waiting[name]:
            lifted = min(waiting) if waiting else max(present, default=Fraction(0))
            self.served[name] = max(self.served[name], lifted)
        self.waiting[name] += 1


@given(st.data())
def test_counters_are_those_that_are_never_forgotten(data: st.DataObject) -> None:
    counters: TokenCounters[str] = TokenCounters()
    oracle = ObviousShares()
    here: dict[str, TokenCounter] = {}
    for _ in range(data.draw(st.integers(1, 60))):
        name = data.draw(st.sampled_from(NAMES))
        what = data.draw(st.sampled_from(["join", "admit", "preempt", "end", "charge"]))
        if what == "join":
            oracle.join(name)
            here[name] = counters.join(name)
            counters.wait(name)
        elif what == "admit" and oracle.waiting[name]:
            oracle.admit(name)
            counters.stop_waiting(name)
        elif what == "preempt" and oracle.running[name]:
            oracle.preempt(name)
            counters.wait(name)
        elif what == "end" and oracle.running[name]:
            oracle.end(name)
            counters.leave(name)
        elif what == "charge" and name in oracle.present():
            num_tokens = data.draw(st.integers(1, 50))
            oracle.served[name] += num_tokens
            here[name].served += num_tokens
        for other in oracle.present():
            assert here[other].served == oracle.served[other]


def test_nobody_saves_up_and_nobody_escapes_by_leaving() -> None:
    counters: TokenCounters[str] = TokenCounters()

    def join(name: str) -> TokenCounter:
        counter = counters.join(name)
        counters.wait(name)
        return counter

    def leave(name: str) -> None:
        counters.stop_waiting(name)
        counters.leave(name)

    flood = join("flood")
    flood.served += 1000
    assert join("new").served == 1000  # what the flood had alone it owes nobody
    flood.served += 50
    leave("flood")
    assert join("flood").served == 1050  # one that ends each answer before it asks again is not new
    leave("flood")
    leave("new")
    assert join("new").served == 0


def test_who_only_runs_saves_nothing_up_for_himself_or_for_a_newcomer() -> None:
    counters: TokenCounters[str] = TokenCounters()
    light, busy = counters.join("light"), counters.join("busy")
    for name in ("light", "busy"):
        counters.wait(name)
        counters.stop_waiting(name)
    light.served, busy.served = 10, 1000
    newcomer = counters.join("new")
    counters.wait("new")
    assert newcomer.served == 1000  # nobody waited
    newcomer.served = 900
    counters.wait("light")
    assert light.served == 900  # the lowest of those who wait, now that it waits, too
    counters.wait("busy")
    assert busy.served == 1000


def test_one_adapter_of_one_tenant_is_a_queue() -> None:
    queue = FairQueue()
    sequences = [sequence(index) for index in range(5)]
    for one in sequences:
        queue.add(one)
        queue.charge(one, index := 100 * one.arrival_index)
        assert index == 100 * one.arrival_index
    assert queue.first(3, everywhere) == sequences[:3]
    queue.admit(sequences[0])
    queue.admit(sequences[1])
    queue.requeue(sequences[1])
    assert list(queue) == sequences[1:]
    sequences[1].awaits_grammar = True
    assert queue.next(everywhere) is sequences[2]
    for one in sequences:
        queue.finish(one)
    assert not len(queue)
    assert not queue.is_shared


def test_the_tenant_that_had_least_is_next_and_of_its_adapters_the_one_that_had_least() -> None:
    queue = FairQueue()
    a, ax, b = sequence(0, "a"), sequence(1, "a", "x"), sequence(2, "b")
    for one in (a, ax, b):
        queue.add(one)
    queue.charge(a, 10)
    assert queue.next(everywhere) is b
    queue.charge(b, 11)
    assert queue.next(everywhere) is ax
    assert queue.next(lambda adapter: adapter is None) is a
    assert queue.first(9, everywhere) == [ax, a, b]
    queue.charge(ax, 20)
    assert queue.first(1, everywhere) == [b]


def test_prompts_are_computed_by_turns_as_counters_change() -> None:
    queue = FairQueue()
    long, short, other = sequence(0, "a", length=90), sequence(1, "a", length=10), sequence(2, "b", length=50)
    for one in (long, short, other):
        queue.add(one)
    turns = queue.by_turns({long: 90, short: 10, other: 50})
    order = []
    for one in turns:
        queue.charge(one, len(one.tokens))
        order.append(one)
    assert order == [short, other, long]


def test_adapters_are_put_on_the_device_by_turns() -> None:
    queue = FairQueue()
    for index, adapter in enumerate(("x", "y", "z", "x")):
        queue.add(sequence(index, "a", adapter))
    queue.add(sequence(4, "b", "u"))
    queue.add(sequence(5, "b", "x"))
    queue.add(sequence(6, "c"))
    assert adapters_of(queue.by_adapter_turns({})) == ["x", "u", "y", "x", "z"]
    many = queue.flow(next(iter(queue))).tenant
    assert adapters_of(queue.by_adapter_turns({many: 2})) == ["u", "x", "x", "y", "z"]


def adapters_of(flows: list[Flow]) -> list[str | None]:
    return [flow.adapter for flow in flows]


def test_weights() -> None:
    queue = FairQueue()
    heavy, light = sequence(0, "heavy", weight=3.0), sequence(1, "light")
    queue.add(heavy)
    queue.add(light)
    turns: Counter[str] = Counter()
    for _ in range(400):
        one = queue.next(everywhere)
        assert one is not None
        turns[one.request.tenant] += 1
        queue.charge(one, 7)
    assert turns == {"heavy": 300, "light": 100}


@pytest.mark.parametrize(
    ("held", "takes", "expected"),
    [
        ((32, 0), 1, True),
        ((17, 15), 1, True),  # 16 and 16
        ((16, 15), 1, False),  # these would be 15 and 16
        ((1, 0), 1, False),
        ((10, 1), 8, True),
        ((10, 1), 9, False),
    ],
)
def test_who_has_more_places_gives_one_that_it_never_gets_back(
    held: tuple[int, int], takes: int, expected: bool
) -> None:
    rich, poor = TokenCounter(served=10), TokenCounter(served=5)
    held_by = {rich: held[0], poor: held[1]}
    assert owes(rich, poor, held_by, gives=1, takes=takes, lead=100) is expected
    assert not owes(poor, rich, held_by, gives=1, takes=takes, lead=100)
    rich.served = 105
    assert owes(rich, poor, held_by, gives=1, takes=takes, lead=100)
    rich.served = 5
    assert not owes(rich, poor, held_by, gives=1, takes=takes, lead=100)
