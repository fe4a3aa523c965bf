"""The prefix cache: reuse by those who may, isolation from others, and no effect on answers."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graftwork.server.engine.kv import prefix_cache
from graftwork.server.engine.kv.prefix_cache import SHORTEST_CUT, Prefix, PrefixCache, PrefixHit
from graftwork.server.engine.sequence import SequenceState
from tests.engine.scheduler_driver import Driver, make


def roomy(**limits: int | bool) -> Driver:
    """Room for everybody: 8 at once, 32 slots."""
    options = {"max_sequences": 8, "num_slots": 32, "max_length": 4096, "cache_tokens": 100_000, "step_tokens": 128}
    return Driver(make(**(options | limits)))  # type: ignore[arg-type]


def tokens(seed: int, count: int) -> list[int]:
    return [seed * 10_000 + index for index in range(count)]


def test_a_growing_chat_goes_on_where_it_was() -> None:
    driver = roomy()
    driver.ask("turn-1", tokens(1, 100), adapter="x", max_tokens=20)
    driver.run()
    said = driver.said["turn-1"]
    turn = driver.ask("turn-2", [*tokens(1, 100), *said, *tokens(2, 30)], adapter="x")
    assert driver.step() == [("turn-2", 119, 31)]  # the last token said was never computed
    assert (turn.num_cached, driver.num_copied) == (119, 0)
    assert driver.scheduler.prefix_cache.num_retained == 0  # taken over
    driver.run()


def test_a_shared_beginning_is_copied_and_stays_for_the_next() -> None:
    driver = roomy()
    system = tokens(0, 200)
    driver.ask("first", [*system, *tokens(1, 60)])
    driver.run()
    for index in range(2, 6):
        sequence = driver.ask(str(index), [*system, *tokens(index, 60)])
        driver.run()
        assert sequence.num_cached == 200
    assert driver.num_copied == 800
    again = driver.ask("again", [*system, *tokens(1, 60)])
    driver.step()
    assert again.num_cached == 259  # the first one's own is still there; the last token is always computed


def test_a_running_sequence_is_copied_from() -> None:
    driver = roomy()
    driver.ask("runs", tokens(1, 100), max_tokens=50)
    driver.step()
    sequence = driver.ask("same", tokens(1, 100))
    driver.step()
    assert sequence.num_cached == 99
    driver.run()


def test_what_is_little_is_taken_over_and_what_is_much_is_copied() -> None:
    driver = roomy()
    driver.ask("a", tokens(1, 330), max_tokens=1)
    driver.run()
    driver.ask("b", [*tokens(1, 320), *tokens(2, 300)], max_tokens=1)  # 10 tokens of a are lost
    driver.run()
    assert driver.num_copied == 0
    driver.ask("c", [*tokens(1, 320), *tokens(3, 20)], max_tokens=1)  # 300 tokens of b would be
    driver.run()
    assert driver.num_copied == 320
    assert driver.scheduler.prefix_cache.num_retained == 2


def test_requests_that_arrive_together_compute_their_beginning_once() -> None:
    driver = roomy(max_sequences=16)
    system = tokens(0, 400)
    for index in range(16):
        driver.ask(str(index), [*system, *tokens(index + 1, 10)], max_tokens=1)
    driver.run()
    assert driver.num_computed < 400 + 16 * 10 + 100  # of 6,560; for less than 32 tokens nobody waits
    assert max(driver.ended.values()) <= 9  # 400 tokens take four steps of 128, 160 two; copies count a little, too


def test_nobody_waits_for_a_beginning_that_saves_little() -> None:
    driver = roomy()
    driver.ask("a", tokens(1, 60))
    driver.ask("b", [*tokens(1, 24), *tokens(2, 30)])
    assert {request for request, _, _ in driver.step()} == {"a", "b"}
    driver.run()


def test_who_waits_for_a_beginning_makes_it_urgent() -> None:
    """A long prompt leads a short one that shares its beginning: it is not left to wait behind others."""
    driver = roomy(step_tokens=64)
    driver.ask("leader", [*tokens(0, 400), *tokens(1, 3000)], max_tokens=1)
    driver.step()
    short = driver.ask("short", [*tokens(0, 400), *tokens(2, 10)], max_tokens=1)
    for index in range(20):
        driver.ask(f"other-{index}", tokens(index + 3, 500), max_tokens=1)
    for _ in range(9):
        driver.step()
    assert "short" in driver.ended
    assert short.num_cached is not None
    assert short.num_cached >= 384  # for the rest it does not wait


def test_when_the_leader_leaves_the_others_go_on() -> None:
    driver = roomy(step_tokens=100)
    leader = driver.ask("leader", tokens(1, 1000))
    others = [driver.ask(str(index), [*tokens(1, 900), index]) for index in range(3)]
    driver.step()
    driver.step()
    driver.scheduler.finish(leader)
    driver.run()
    assert all(sequence.num_cached is not None and sequence.num_cached >= 200 for sequence in others)


def test_what_a_cancelled_request_had_computed_is_found() -> None:
    driver = roomy(step_tokens=100)
    cancelled = driver.ask("cancelled", tokens(1, 1000))
    driver.step()
    driver.step()
    driver.scheduler.finish(cancelled)
    again = driver.ask("again", tokens(1, 1000))
    driver.step()
    assert again.num_cached == 200


def test_only_the_same_adapter_finds_it() -> None:
    driver = roomy()
    for adapter in ("x", None, "y"):
        sequence = driver.ask(f"{adapter}", tokens(1, 100), adapter=adapter)
        driver.run()
        assert sequence.num_cached == 0
    again = driver.ask("again", tokens(1, 100), adapter="x")
    driver.run()
    assert again.num_cached == 99


def test_only_the_same_salt_finds_it() -> None:
    driver = roomy()
    driver.ask("one key's", tokens(1, 100), cache_salt="key_1")
    driver.run()
    another = driver.ask("another's", tokens(1, 100), cache_salt="key_2")
    driver.step()
    assert (another.num_cached, driver.num_copied) == (0, 0)
    driver.run()
    same = driver.ask("the first again", tokens(1, 100), cache_salt="key_1")
    driver.step()
    assert same.num_cached == 99
    driver.run()


def test_prompts_to_be_scored_are_computed_and_serve_others() -> None:
    driver = roomy(step_tokens=32)
    driver.ask("first", tokens(1, 100))
    driver.run()
    scored = driver.ask("scored", tokens(1, 100), prompt_logprobs=0)
    driver.run()
    assert scored.num_cached == 0
    other = driver.ask("other", tokens(1, 100))
    driver.run()
    assert other.num_cached == 99


def test_what_failed_is_never_found() -> None:
    driver = roomy(step_tokens=100)
    driver.ask("a", tokens(1, 300))
    driver.step()
    assert driver.fail_step() == ["a"]
    again = driver.ask("again", tokens(1, 300))
    driver.run()
    assert again.num_cached == 0


def test_the_least_recently_used_gives_way_tail_first() -> None:
    driver = roomy(cache_tokens=1200, max_length=1200, max_sequences=2)
    for index in range(3):
        driver.ask(str(index), tokens(index, 380), max_tokens=1)
        driver.run()
    driver.ask("fresh 0", tokens(0, 380), max_tokens=1)  # used again: now 1 is the oldest
    driver.run()
    driver.ask("new", tokens(9, 200), max_tokens=1)
    driver.run()
    found = [driver.scheduler.prefix_cache.find(Prefix(None, tokens(index, 380)), 380).count for index in range(3)]
    assert found == [380, 380 - SHORTEST_CUT, 380]
    driver.ask("large", tokens(10, 1100), max_tokens=1)
    driver.run()
    found = [driver.scheduler.prefix_cache.find(Prefix(None, tokens(index, 380)), 380).count for index in range(3)]
    assert found == [0, 0, 0]


def test_slots_are_evicted_when_they_are_wanted() -> None:
    driver = roomy(num_slots=4, max_sequences=2)
    for index in range(6):
        driver.ask(str(index), tokens(index, 50), max_tokens=1)
        driver.run()
    found = [driver.scheduler.prefix_cache.find(Prefix(None, tokens(index, 50)), 50).count for index in range(6)]
    assert found == [0, 0, 50, 50, 50, 50]


def test_the_only_slot_is_taken_over() -> None:
    driver = roomy(num_slots=1, max_sequences=1)
    driver.ask("a", [*tokens(0, 100), *tokens(1, 100)], max_tokens=1)
    driver.run()
    sequence = driver.ask("b", [*tokens(0, 100), *tokens(2, 100)], max_tokens=1)
    driver.run()
    assert (sequence.num_cached, driver.num_copied) == (100, 0)


def test_a_preempted_sequence_comes_back_through_it() -> None:
    driver = roomy(cache_tokens=1400, max_length=1400, max_sequences=2, step_tokens=2000)
    driver.ask("old", tokens(1, 690), max_tokens=200)
    driver.ask("young", tokens(2, 690), max_tokens=30)
    driver.run()
    assert driver.scheduler.num_preemptions > 0
    assert driver.num_computed < 2 * 690 + 230 + 690  # not all of it twice


def test_off_it_finds_nothing() -> None:
    driver = roomy(prefix_cache=False)
    for index in range(3):
        sequence = driver.ask(str(index), tokens(1, 100))
        driver.run()
        assert sequence.num_cached == 0
    assert driver.scheduler.prefix_cache.num_retained == 0


def test_hashes_are_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's memory notices if anybody computes upon tokens that are not its own."""
    monkeypatch.setattr(prefix_cache, "hash", lambda _: 1, raising=False)
    driver = roomy()
    driver.checked = False  # the index is wrong, of course
    for index in range(12):
        driver.ask(str(index), tokens(index % 3, 60 + index), adapter=("x", None)[index % 2], max_tokens=3)
        driver.step()
    driver.run()


def test_looking_up_is_quick() -> None:
    """Among 120 retained sequences of 4,000 tokens that all begin alike."""
    cache = PrefixCache(128)
    system = tokens(0, 2000)
    for index in range(120):
        slot = cache.allocate(Prefix("x", [*system, *tokens(index, 2000)]), PrefixHit(0, None), room=10**9)
        cache.release(slot, 4000, keep=True)
    wanted = [Prefix("x", [*system, *tokens(index % 130, 2001)]) for index in range(200)]
    for prefix in wanted:
        prefix.keys(4000)
    began = time.thread_time()
    counts = [cache.find(prefix, 4000).count for prefix in wanted]
    assert counts == [4000 if index % 130 < 120 else 2000 for index in range(200)]
    assert time.thread_time() - began < 0.4


@pytest.mark.parametrize("seed", range(4))
@settings(max_examples=25)
@given(data=st.data())
def test_random_conversations_keep_every_promise(seed: int, data: st.DataObject) -> None:
    """Chats that grow and branch, system prompts, cancellations, failing steps, too little of everything."""
    rng = random.Random(data.draw(st.integers(0, 10**6)) + seed)
    max_sequences = rng.choice([1, 3, 8])
    scheduler = make(
        max_sequences=max_sequences,
        num_slots=max_sequences * rng.choice([1, 2, 4]),
        max_length=300,
        cache_tokens=rng.choice([300, 700, 3000]),
        step_tokens=rng.choice([8, 30, 128]),
        pages=rng.choice([1, 2, 8]),
    )
    driver = Driver(scheduler, fetch_steps=rng.choice([0, 2]))
    systems = [tokens(index, rng.choice([20, 50, 100])) for index in range(3)]
    chats: list[list[int]] = []
    expected: set[str] = set()
    for index in range(40):
        for _ in range(rng.choice([0, 0, 1, 1, 4])):
            beginning = rng.choice([*systems, *chats[-6:], []])
            prompt = [*beginning[: rng.choice([len(beginning), len(beginning), rng.randint(0, 99)])]]
            prompt += tokens(1000 + rng.randint(0, 10**6), rng.randint(1, 40))
            name = f"{index}-{len(driver.asked)}"
            adapter = rng.choice([None, "x", "y", "z"])
            scored = rng.choice([None, None, None, 0])
            options = {"max_tokens": rng.randint(1, 20), "prompt_logprobs": scored}
            sequence = driver.ask(name, prompt[:299], adapter=adapter, **options)
            chats.append(sequence.tokens)
            expected.add(name)
        if rng.random() < 0.1 and len(scheduler):
            cancelled: SequenceState = rng.choice(list(scheduler))
            scheduler.finish(cancelled)
            expected.discard(cancelled.request.id)
        if rng.random() < 0.05:
            expected -= set(driver.fail_step())
        driver.step()
    driver.run()
    assert expected <= set(driver.ended)
