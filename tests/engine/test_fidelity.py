"""A mixed batch equals single-adapter PEFT: the same tokens, log-probabilities to 1e-3."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.engine import zoo

TOLERANCE = 1e-3


def prompts_for(names: list[str | None], seed: int) -> list[tuple[str, str | None, list[int]]]:
    """Several prompts a name, of lengths that make short runs, long runs and windows overflow."""
    rng = random.Random(seed)
    lengths = [3, 21, 1, 47, 9, 70]
    made = []
    for index, name in enumerate(names):
        for repeat in range(2):
            length = lengths[(index * 2 + repeat) % len(lengths)]
            made.append((f"{name}-{repeat}", name, [rng.randrange(256) for _ in range(length)]))
    rng.shuffle(made)
    return made


def check(bench: zoo.Bench, adapters: dict[str, Path], seed: int = 0) -> float:
    """Everything at once through the engine, then each alone through PEFT. Returns the largest difference."""
    asked = prompts_for([None, *adapters], seed)
    for request_id, name, prompt in asked:
        bench.add(request_id, prompt, name)
    answers = bench.run()
    models: dict[str | None, Any] = {None: zoo.load_reference(bench.info)}
    worst = 0.0
    for request_id, name, prompt in asked:
        if name not in models:
            models[name] = zoo.with_adapter(bench.info, adapters[name])
        answer = answers[request_id]
        assert answer.error is None
        assert len(answer.tokens) == 8
        expected = zoo.reference_logprobs(models[name], prompt + answer.tokens)
        said = answer.prompt_logprobs + answer.logprobs
        assert len(said) == len(expected)
        worst = max(worst, max(abs(a - b) for a, b in zip(said, expected, strict=True)))
    bench.engine.adapter_cache.check_integrity()
    print(f"largest difference {worst:.2e}")
    return worst


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> zoo.BaseInfo:
    return zoo.make_base("llama", tmp_path_factory.mktemp("llama"), tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> zoo.BaseInfo:
    return zoo.make_base("llama-untied", tmp_path_factory.mktemp("untied"), tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def llama_adapters(llama: zoo.BaseInfo, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_all(llama, zoo.KINDS, tmp_path_factory.mktemp("adapters"))


def make_all(info: zoo.BaseInfo, kinds: dict[str, dict[str, Any]], root: Path) -> dict[str, Path]:
    for index, (name, kind) in enumerate(kinds.items()):
        zoo.make_adapter(info, root / name, kind, seed=index)
    return {name: root / name for name in kinds}


def test_every_kind_in_one_batch(llama: zoo.BaseInfo, llama_adapters: dict[str, Path]) -> None:
    bench = zoo.Bench(llama, llama_adapters, num_slots=32, max_sequences=32)
    assert check(bench, llama_adapters) < TOLERANCE


def test_every_kind_with_fewer_slots_than_adapters(llama: zoo.BaseInfo, llama_adapters: dict[str, Path]) -> None:
    bench = zoo.Bench(llama, llama_adapters, num_slots=5, max_sequences=4, step_tokens=24)
    assert check(bench, llama_adapters, seed=1) < TOLERANCE
    assert bench.engine.adapter_cache.num_evictions > 0


def test_head_and_embedding_kinds(untied: zoo.BaseInfo, tmp_path: Path) -> None:
    adapters = make_all(untied, {**zoo.KINDS, **zoo.UNTIED_KINDS}, tmp_path)
    bench = zoo.Bench(untied, adapters, num_slots=40, max_sequences=16)
    assert check(bench, adapters) < TOLERANCE


@pytest.mark.parametrize("architecture", [a for a in zoo.ARCHITECTURES if not a.startswith("llama")])
def test_architectures(architecture: str, tmp_path: Path) -> None:
    info = zoo.make_base(architecture, tmp_path / "base", tmp_path / "home")
    kinds = {name: zoo.KINDS[name] for name in ("rank-16", "rank-5", "dora", "q-and-v", "norm-saved")}
    adapters = make_all(info, kinds, tmp_path)
    bench = zoo.Bench(info, adapters, step_tokens=40)
    assert check(bench, adapters) < TOLERANCE
