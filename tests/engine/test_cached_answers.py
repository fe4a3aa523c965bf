"""Answers are the same with and without the prefix cache."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from graftwork.server.engine.kv.prefix_cache import BLOCK_SIZE
from graftwork.server.engine.request import FinishReason
from tests.engine import zoo

#: Two tokens a layer, for keys and values, of 2 heads of 16 float32: what a token takes in the tiny Llama.
TOKEN_BYTES = 3 * 2 * 2 * 16 * 4


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> zoo.BaseInfo:
    return zoo.make_base("llama", tmp_path_factory.mktemp("llama"), tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def adapters(base: zoo.BaseInfo, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_adapters(base, tmp_path_factory.mktemp("adapters"))


def make_adapters(base: zoo.BaseInfo, root: Path) -> dict[str, Path]:
    """Two that differ only in their numbers."""
    for index in range(2):
        zoo.make_adapter(base, root / f"a{index}", zoo.KINDS["rank-16"], seed=index)
    return {f"a{index}": root / f"a{index}" for index in range(2)}


def prompt(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(256) for _ in range(length)]


@dataclass
class Pair:
    """A bench with the cache, and one without it to compare with, a request at a time."""

    bench: zoo.Bench
    oracle: zoo.Bench

    @property
    def num_cached(self) -> int:
        return self.bench.engine.scheduler.num_cached_tokens

    def ask(self, request_id: str, tokens: list[int], adapter: str | None = None, **options: Any) -> None:
        self.bench.add(request_id, tokens, adapter, **{"prompt_logprobs": None, **options})

    def check(self, answer: zoo.Answered, tokens: list[int], adapter: str | None, **options: Any) -> None:
        self.oracle.add("alone", tokens, adapter, **{"prompt_logprobs": None, **options})
        alone = self.oracle.run()["alone"]
        assert (answer.tokens, answer.finish_reason) == (alone.tokens, alone.finish_reason)
        assert answer.logprobs == pytest.approx(alone.logprobs, abs=1e-4)


def pair(base: zoo.BaseInfo, adapters: dict[str, Path], **options: Any) -> Pair:
    return Pair(zoo.Bench(base, adapters, **options), zoo.Bench(base, adapters, prefix_cache=False))


def conversations(rng: random.Random, count: int) -> Iterator[tuple[list[int], str | None]]:
    """Prompts that begin alike in every way there is; the caller extends what was said by ``send``-ing nothing."""
    systems = [prompt(seed, length) for seed, length in ((1, 40), (2, 70), (3, 17))]
    for _ in range(count):
        beginning = rng.choice([*systems, []])
        yield [*beginning, *prompt(rng.randrange(8), rng.randint(1, 60))], rng.choice([None, "a0", "a1"])


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma3", "qwen2"])
def test_random_conversations(architecture: str, tmp_path: Path) -> None:
    """Sliding windows of 16 and 20 among them; too few slots and too few tokens for what could be kept."""
    base = zoo.make_base(architecture, tmp_path / "base", tmp_path / "home")
    both = pair(base, make_adapters(base, tmp_path), max_sequences=4, step_tokens=48, cache_bytes=900 * TOKEN_BYTES)
    rng = random.Random(7)
    turns = list(conversations(rng, 12))
    for round_number in range(4):
        asked = {f"{round_number}-{index}": turn for index, turn in enumerate(turns)}
        for request_id, (tokens, adapter) in asked.items():
            both.ask(request_id, tokens, adapter)
        for index in range(4):  # cancelled in the middle of their prompts
            tokens, adapter = rng.choice(turns)
            both.ask(f"leaves {index}", [*tokens, *prompt(99, 50)], adapter)
        told = both.bench.engine.step()
        for index in range(4):
            both.bench.engine.abort(f"leaves {index}")
        answers = both.bench.run(told)
        for request_id, (tokens, adapter) in asked.items():
            both.check(answers[request_id], tokens, adapter)
        turns = [
            ([*tokens, *answers[request_id].tokens, *prompt(rng.randrange(99), 9)][:200], adapter)
            for request_id, (tokens, adapter) in asked.items()
        ]
        both.bench.engine.scheduler.prefix_cache.check_integrity()
    assert both.num_cached > 500


def test_a_growing_chat_reports_what_it_did_not_compute(base: zoo.BaseInfo, adapters: dict[str, Path]) -> None:
    both = pair(base, adapters)
    tokens = prompt(1, 50)
    for turn in range(4):
        both.ask(str(turn), tokens, "a0")
        before = len(tokens)
        deltas = []
        while len(both.bench.engine.scheduler):
            deltas += both.bench.engine.step()
        assert [delta.num_cached for delta in deltas] == [before - 10 if turn else 0, *[0] * (len(deltas) - 1)]
        tokens += [token for delta in deltas for token in delta.token_ids] + prompt(turn, 9)
        if turn == 3:
            both.check(zoo.Answered(tokens[before:-9], [s.logprob for d in deltas for s in d.logprobs], [],
                                    FinishReason.LENGTH), tokens[:before], "a0")  # fmt: skip


def test_equal_prompts_sampled_together(base: zoo.BaseInfo, adapters: dict[str, Path]) -> None:
    """Eight choices of one prompt: one computes it, the others copy it, each draws by its own seed."""
    both = pair(base, adapters)
    tokens = prompt(5, 100)
    for seed in range(8):
        both.ask(str(seed), tokens, "a1", temperature=1.0, seed=seed)
    answers = both.bench.run()
    assert both.num_cached == 7 * 99
    for seed in range(8):
        both.check(answers[str(seed)], tokens, "a1", temperature=1.0, seed=seed)


def test_preempted_sequences(base: zoo.BaseInfo, adapters: dict[str, Path]) -> None:
    both = pair(base, adapters, cache_bytes=220 * TOKEN_BYTES)
    for index in range(6):
        both.ask(str(index), prompt(index, 40), f"a{index % 2}", temperature=0.8, seed=index, max_tokens=40)
    answers = both.bench.run()
    assert both.bench.engine.scheduler.num_preemptions > 0
    for index in range(6):
        options = {"temperature": 0.8, "seed": index, "max_tokens": 40}
        both.check(answers[str(index)], prompt(index, 40), f"a{index % 2}", **options)


def test_scored_prompts_are_scored_whole(base: zoo.BaseInfo, adapters: dict[str, Path]) -> None:
    both = pair(base, adapters, step_tokens=32, cache_bytes=260 * TOKEN_BYTES)
    tokens = prompt(3, 90)
    both.ask("first", tokens, "a0")
    both.bench.run()
    for index in range(3):  # so many that they preempt one another
        both.ask(f"scored-{index}", [*tokens, index], "a0", prompt_logprobs=0, max_tokens=20)
    answers = both.bench.run()
    for index in range(3):
        both.oracle.add("alone", [*tokens, index], "a0", max_tokens=20)
        alone = both.oracle.run()["alone"]
        assert answers[f"scored-{index}"].prompt_logprobs == pytest.approx(alone.prompt_logprobs, abs=1e-4)
        assert answers[f"scored-{index}"].tokens == alone.tokens


def test_infinite_neighbours_reach_nobody(base: zoo.BaseInfo, adapters: dict[str, Path], tmp_path: Path) -> None:
    """What they leave is NaN: it is kept for their own adapter, and must be gone when others get the slot."""
    zoo.make_adapter(base, tmp_path / "hot", zoo.KINDS["rank-16"], seed=9)
    file = tmp_path / "hot" / "adapter_model.safetensors"
    save_file({key: tensor * 1e30 for key, tensor in load_file(file).items()}, file)
    options = {"max_sequences": 3, "step_tokens": 64, "cache_bytes": 3000 * TOKEN_BYTES}
    both = pair(base, {**adapters, "hot": tmp_path / "hot"}, **options)
    for index in range(12):
        both.ask(f"leaves-{index}", prompt(index % 3, 150), "hot")
        for _ in range(50):
            both.bench.engine.step()
            sequence = both.bench.engine.scheduler.get(f"leaves-{index}")
            if sequence is not None and sequence.num_computed >= 32:
                break
        both.bench.engine.abort(f"leaves-{index}")
        both.ask(f"bad-{index}", prompt(index % 3, 20 + index), "hot")
        both.ask(f"good-{index}", prompt(50 + index, 5 + index), "a0", max_tokens=20)
        both.ask(f"long-{index}", prompt(index % 5, 150), None, max_tokens=30)  # rows are padded to its length
        answers = both.bench.run()
        assert answers[f"bad-{index}"].finish_reason is FinishReason.ERROR
        both.check(answers[f"good-{index}"], prompt(50 + index, 5 + index), "a0", max_tokens=20)
        both.check(answers[f"long-{index}"], prompt(index % 5, 150), None, max_tokens=30)
    assert both.num_cached > 0


def test_what_a_failing_step_left_is_not_used(
    base: zoo.BaseInfo, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    both = pair(base, adapters, step_tokens=64)
    tokens = prompt(4, 150)
    run = both.bench.engine.runner.run
    steps = iter([False, True])

    @torch.inference_mode()
    def fail_at_second(work: Any) -> Any:
        if next(steps, False):
            for tensor in both.bench.engine.runner.cache.keys:
                for item in work:
                    tensor[item.sequence.slot].fill_(7.0)
            raise MemoryError("out of memory")
        return run(work)

    monkeypatch.setattr(both.bench.engine.runner, "run", fail_at_second)
    both.ask("fails", tokens)
    assert both.bench.run()["fails"].finish_reason is FinishReason.ERROR
    both.ask("again", tokens)
    both.check(both.bench.run()["again"], tokens, None)
    assert both.num_cached == 0


def test_shortest_beginning(base: zoo.BaseInfo, adapters: dict[str, Path]) -> None:
    both = pair(base, adapters)
    for count in (BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1):
        before = both.num_cached
        for end in range(2):
            both.ask("x", [*prompt(count, count), 5 + end, 7], "a0", max_tokens=1)
            both.check(both.bench.run()["x"], [*prompt(count, count), 5 + end, 7], "a0", max_tokens=1)
        assert both.num_cached - before == (count if count >= BLOCK_SIZE else 0)
