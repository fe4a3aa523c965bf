"""Speculative decoding: draft tokens change the number of steps, never the answer."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from graftwork.server.engine.engine import Engine
from graftwork.server.engine.grammars.grammar import make_grammar
from graftwork.server.engine.proposer import ForcedTokenProposer
from graftwork.server.engine.request import Delta, FinishReason, Request, SamplingParams
from graftwork.server.engine.sampler import SampledToken, accept
from graftwork.server.engine.sequence import SequenceState
from tests.engine import zoo
from tests.engine.scheduler_driver import ask, make


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> zoo.BaseInfo:
    return zoo.make_base("llama", tmp_path_factory.mktemp("llama"), tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def adapters(base: zoo.BaseInfo, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    for index in range(2):
        zoo.make_adapter(base, root / f"a{index}", zoo.KINDS["rank-16"], seed=index)
    return {f"a{index}": root / f"a{index}" for index in range(2)}


class Knows:
    """Proposes what ``answers`` say; each token is spoilt with the probability ``wrong``."""

    def __init__(self, answers: dict[str, list[int]], *, length: int, wrong: float) -> None:
        self.answers = answers
        self.length = length
        self.wrong = wrong
        self.rng = random.Random(0)
        self.num_calls = 0

    def propose(self, sequences: Sequence[SequenceState]) -> list[list[int]]:
        self.num_calls += 1
        return [self._propose(sequence) for sequence in sequences]

    def _propose(self, sequence: SequenceState) -> list[int]:
        answer = self.answers.get(sequence.request.id, [])
        drafts = answer[sequence.num_generated : sequence.num_generated + self.rng.randrange(self.length + 1)]
        return [(token + 1) % 256 if self.rng.random() < self.wrong else token for token in drafts]


REQUESTS: dict[str, dict[str, Any]] = {
    "greedy": {"prompt": list(range(5, 17))},
    "of an adapter": {"prompt": list(range(9, 30)), "adapter": "a0"},
    "drawn": {"prompt": list(range(40, 60)), "adapter": "a1", "temperature": 1.0, "seed": 3},
    "nucleus": {"prompt": list(range(40, 60)), "temperature": 1.3, "top_p": 0.8, "seed": 4},
    "penalized": {"prompt": list(range(60, 66)), "frequency_penalty": 0.5, "presence_penalty": 0.8},
    "held off": {
        "prompt": list(range(70, 90)),
        "temperature": 1.5,
        "seed": 5,
        "min_tokens": 20,
        "stop_token_ids": frozenset(range(0, 250, 2)),
    },
}


def answers_of(bench: zoo.Bench) -> dict[str, zoo.Answered]:
    for request_id, options in REQUESTS.items():
        bench.add(request_id, **{"max_tokens": 40, **options})
    return bench.run()


@pytest.mark.parametrize("config", [{}, {"cache_bytes": 150 * 3 * 2 * 2 * 16 * 4}, {"quantize": "int8"}])
@pytest.mark.parametrize("wrong", [0.0, 0.3, 1.0])
def test_answers_are_the_same_with_drafts(
    base: zoo.BaseInfo, adapters: dict[str, Path], wrong: float, config: dict[str, Any]
) -> None:
    bench = zoo.Bench(base, adapters, **config)
    expected = answers_of(bench)
    without = bench.engine.num_steps
    proposer = Knows({name: answer.tokens for name, answer in expected.items()}, length=5, wrong=wrong)
    bench.engine._proposer = proposer
    answers = answers_of(bench)
    for name, answer in expected.items():
        assert answers[name].tokens == answer.tokens, name
        assert answers[name].finish_reason is answer.finish_reason
        assert answers[name].logprobs == pytest.approx(
            answer.logprobs, abs=1e-4 if not config.get("quantize") else 0.01
        )
    assert proposer.num_calls
    if wrong < 1 and "cache_bytes" not in config:
        assert bench.engine.num_steps - without < without * 0.8
    bench.engine.scheduler.prefix_cache.check_integrity()
    bench.engine._proposer = None
    again = answers_of(bench)  # what drafts left in the cache is used again
    assert {name: answer.tokens for name, answer in again.items()} == {
        name: answer.tokens for name, answer in expected.items()
    }


def test_an_answer_ends_where_it_ends_whatever_is_proposed(base: zoo.BaseInfo) -> None:
    bench = zoo.Bench(base, {}, max_length=64)
    bench.add("free", [1, 2, 3], max_tokens=100)
    free = bench.run()["free"].tokens
    assert len(free) == 61
    stop = next(token for index, token in enumerate(free) if index > 8 and token not in free[:index])
    bench.engine._proposer = Knows(dict.fromkeys(("free", "short", "stopped"), free), length=30, wrong=0)
    bench.add("free", [1, 2, 3], max_tokens=100)
    bench.add("short", [1, 2, 3], max_tokens=7)
    bench.add("stopped", [1, 2, 3], max_tokens=100, stop_token_ids=frozenset({stop}))
    answers = bench.run()
    assert answers["free"].tokens == free
    assert answers["short"].tokens == free[:7]
    assert answers["stopped"].tokens == free[: free.index(stop)]
    assert answers["stopped"].finish_reason is FinishReason.STOP
    assert {answers[name].finish_reason for name in ("free", "short")} == {FinishReason.LENGTH}


def test_a_list_of_tokens_is_settled_up_to_its_end(base: zoo.BaseInfo) -> None:
    engine = zoo.Bench(base, {}).engine
    sequence = running(engine)
    delta = settle(engine, sequence, [7, 8, 9])
    assert delta.token_ids == [7, 8, 9]
    assert sequence.tokens[-3:] == [7, 8, 9]
    assert sequence.decoding, "all but the last were computed"
    delta = settle(engine, sequence, [4, 5, 6])
    assert delta.token_ids == [4], "5 is a stop token"
    assert delta.finish_reason is FinishReason.STOP


def running(engine: Engine) -> SequenceState:
    sampling = {"max_tokens": 10, "temperature": 0.0, "stop_token_ids": frozenset({5})}
    engine.add(Request(id="r", prompt=(1, 2, 3), sampling=SamplingParams(**sampling)))  # type: ignore[arg-type]
    engine.scheduler.schedule()
    sequence = engine.scheduler.get("r")
    assert sequence is not None
    sequence.num_computed = 3
    return sequence


def settle(engine: Engine, sequence: SequenceState, tokens: list[int]) -> Any:
    delta = Delta("r")
    engine._append_tokens(sequence, [SampledToken(token, None) for token in tokens], delta)
    return delta


@pytest.mark.parametrize(
    ("sampled", "drafts", "count"),
    [([1], [], 1), ([1, 2, 3], [1, 2], 3), ([1, 2, 3], [1, 9], 2), ([1, 2, 3], [9, 2], 1), ([None, 2], [1], 1)],
)
def test_drafts_count_up_to_the_first_that_is_wrong(sampled: list[int | None], drafts: list[int], count: int) -> None:
    tokens = [SampledToken(token, None) for token in sampled]
    assert accept(tokens, drafts) == tokens[:count]


def decoding(sequence: SequenceState, tokens: Callable[[], int] = lambda: 7) -> None:
    sequence.num_computed = len(sequence.tokens)
    sequence.tokens.append(tokens())


def test_drafts_take_what_prompts_leave_and_nobody_gives_way_to_them() -> None:
    scheduler = make(max_sequences=3, cache_tokens=64, max_length=40, step_tokens=16)
    first = scheduler.add(ask("first", 4, max_tokens=30))
    scheduler.schedule()
    decoding(first)
    first.spec_token_ids = tuple(range(100, 120))
    (item,) = scheduler.schedule()
    assert item.count == 17
    assert item.logits == range(4, 21)
    assert item.token_ids == [7, *range(100, 116)]
    assert item.num_samples == 17
    scheduler.add(ask("second", 12))
    mine, other = scheduler.schedule()
    assert (mine.count, other.count) == (5, 12)
    assert (mine.logits, other.logits) == (range(4, 9), range(11, 12))
    full = scheduler.add(ask("third", 20))
    scheduler.get("second").num_computed = 12  # type: ignore[union-attr]
    mine, other = (item for item in scheduler.schedule() if item.sequence is not scheduler.get("second"))
    assert mine.count == 1, "the third's prompt takes the whole budget"
    assert other.sequence is full


def test_what_a_grammar_forces_takes_one_step(base: zoo.BaseInfo) -> None:
    grammar = make_grammar("regex", "(yes|no), I am quite sure[.!]")
    held = {"grammar": grammar, "max_tokens": 40, "temperature": 1.0, "seed": 5}

    def answered(proposer: ForcedTokenProposer | None) -> tuple[dict[str, list[int]], int]:
        bench = zoo.Bench(base, {})
        bench.engine._proposer = proposer
        bench.add("held", list(range(5, 17)), **held)
        bench.add("free", list(range(9, 30)), max_tokens=4, temperature=1.0, seed=6)
        answers = bench.run()
        return {name: answer.tokens for name, answer in answers.items()}, bench.engine.num_steps

    alone, num_steps = answered(None)
    drafted, fewer_steps = answered(ForcedTokenProposer())
    assert drafted == alone
    assert len(alone["held"]) > 20
    assert fewer_steps < num_steps / 3
