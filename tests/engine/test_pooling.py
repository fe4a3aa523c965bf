"""Embeddings of a mixed batch equal a plain run of transformers and PEFT, whatever else is computed beside them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.prompts.prompts import Prompts
from graftwork.server.engine import backend_selector
from graftwork.server.engine.backends.cpu import library
from graftwork.server.engine.kv.prefix_cache import BLOCK_SIZE
from graftwork.server.engine.request import FinishReason, Pooling
from tests.engine import zoo

POOLINGS: tuple[Pooling, ...] = ("mean", "last")
TOLERANCE = 1e-5

#: The least cosine between what the embedded base's 8 bits make of a text and what float32 makes of it. Weights whose
#: columns a DoRA scales at random are hardly a language model any more, and small differences grow large there.
INT8_COSINE = {None: 0.995, "rank-16": 0.995, "mlp-only": 0.995, "dora": 0.9}

TEXTS = [
    "How do I get my money back for a card payment that I did not make?",
    "Hello",
    "A lighthouse stands where land ends. " * 30,
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> zoo.BaseInfo:
    return zoo.make_base("llama", tmp_path_factory.mktemp("llama"), tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def adapters(base: zoo.BaseInfo, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    for index, (name, kind) in enumerate(zoo.KINDS.items()):
        zoo.make_adapter(base, root / name, kind, seed=index)
    return {name: root / name for name in zoo.KINDS}


def prompt(seed: int, length: int = 12) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(256) for _ in range(length)]


def check(bench: zoo.Bench, adapters: dict[str, Path]) -> None:
    """Each adapter's embeddings of some prompts, and answers beside them; then each alone through PEFT."""
    asked = {
        f"{name}-{length}-{pooling}": (name, prompt(length, length), pooling)
        for name in (None, *adapters)
        for length in (1, 23, 70)
        for pooling in POOLINGS
    }
    for request_id, (name, tokens, pooling) in asked.items():
        bench.embed(request_id, tokens, name, pooling)
        bench.add(f"beside {request_id}", tokens[:9], name, max_tokens=3)
    answers = bench.run()
    models: dict[str | None, Any] = {None: zoo.load_reference(bench.info)}
    worst = 0.0
    for request_id, (name, tokens, pooling) in asked.items():
        if name not in models:
            models[name] = zoo.with_adapter(bench.info, adapters[name])
        answer, beside = answers[request_id], answers[f"beside {request_id}"]
        assert (answer.error, answer.tokens, answer.finish_reason) == (None, [], FinishReason.LENGTH)
        expected = zoo.reference_embedding(models[name], tokens, pooling)
        worst = max(worst, float((torch.tensor(answer.embedding) - expected).abs().max()))
        assert beside.embedding is None
        said = zoo.reference_logprobs(models[name], tokens[:9] + beside.tokens)
        assert beside.prompt_logprobs + beside.logprobs == pytest.approx(said, abs=1e-3)
    print(f"largest difference {worst:.2e}")
    assert worst < TOLERANCE
    bench.engine.scheduler.prefix_cache.check_integrity()


def test_every_kind_in_one_batch(base: zoo.BaseInfo, adapters: dict[str, Path]) -> None:
    check(zoo.Bench(base, adapters, num_slots=32, max_sequences=32), adapters)


def test_in_chunks_with_fewer_slots_than_adapters(base: zoo.BaseInfo, adapters: dict[str, Path]) -> None:
    check(zoo.Bench(base, adapters, num_slots=5, max_sequences=4, step_tokens=13), adapters)


@pytest.mark.parametrize("architecture", [a for a in zoo.ARCHITECTURES if a != "llama"])
def test_architectures(architecture: str, tmp_path: Path) -> None:
    info = zoo.make_base(architecture, tmp_path / "base", tmp_path / "home")
    zoo.make_adapter(info, tmp_path / "norm-saved", zoo.KINDS["norm-saved"], seed=1)
    adapters = {"norm-saved": tmp_path / "norm-saved"}
    check(zoo.Bench(info, adapters, step_tokens=40), adapters)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_preempted_prompts_become_what_they_would_have_become(base: zoo.BaseInfo, pooling: Pooling) -> None:
    cell = 3 * 2 * 2 * 16 * 4
    roomy, tight = (zoo.Bench(base, {}, cache_bytes=tokens * cell, step_tokens=16) for tokens in (2000, 100))
    for bench in (roomy, tight):
        for index in range(3):
            bench.add(f"chat {index}", prompt(index, 10), max_tokens=40)
        for index in range(4):
            bench.embed(f"embed {index}", prompt(10 + index, 60), pooling=pooling)
    expected, answers = roomy.run(), tight.run()
    assert tight.engine.scheduler.num_preemptions > 0
    for index in range(4):
        known = expected[f"embed {index}"].embedding
        assert answers[f"embed {index}"].embedding == pytest.approx(known, abs=TOLERANCE)
    tight.engine.scheduler.prefix_cache.check_integrity()


def test_what_the_prefix_cache_has_is_part_of_the_mean(base: zoo.BaseInfo) -> None:
    bench = zoo.Bench(base, {})
    scheduler, tokens = bench.engine.scheduler, prompt(1, 4 * BLOCK_SIZE)
    fresh: dict[Pooling, Any] = {}
    for pooling in POOLINGS:
        bench.embed("fresh", prompt(1, 4 * BLOCK_SIZE), pooling=pooling)
        fresh[pooling] = bench.run()["fresh"].embedding
        # A mean leaves nothing behind, since it finds nothing; prompts pooled at their last token share their heads.
        assert (scheduler.prefix_cache.num_retained > 0) is (pooling == "last")
    bench.add("chat", tokens, max_tokens=4, prompt_logprobs=None)
    bench.run()
    before = scheduler.num_cached_tokens
    for pooling, expected in fresh.items():
        bench.embed("again", tokens, pooling=pooling)
        assert bench.run()["again"].embedding == pytest.approx(expected, abs=TOLERANCE)
        assert (scheduler.num_cached_tokens > before) is (pooling == "last")


def test_the_head_is_not_computed(base: zoo.BaseInfo, adapters: dict[str, Path]) -> None:
    bench = zoo.Bench(base, adapters)
    seen: list[int] = []
    model = bench.engine.runner.forward.model._model  # type: ignore[attr-defined]
    watch = model.get_output_embeddings().register_forward_pre_hook(lambda _, x: seen.append(x[0].shape[1]))
    bench.embed("alone", prompt(1), "rank-16")
    bench.run()
    assert seen == []
    bench.embed("beside", prompt(1), "rank-16")
    bench.add("chat", prompt(2), "dora", max_tokens=1, prompt_logprobs=None)
    assert bench.run()["beside"].embedding is not None
    assert seen == [1]
    watch.remove()


def test_a_prompt_whose_states_are_not_finite_is_an_error(base: zoo.BaseInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = zoo.Bench(base, {})
    run = bench.engine.runner.run

    @torch.inference_mode()
    def broken(work: Any) -> Any:
        output = run(work)
        output.hidden_states[0][0, 3] = float("nan")
        return output

    monkeypatch.setattr(bench.engine.runner, "run", broken)
    bench.embed("broken", prompt(1, 2 * BLOCK_SIZE), pooling="last")
    answer = bench.run()["broken"]
    assert (answer.embedding, answer.finish_reason) == (None, FinishReason.ERROR)
    assert "not finite" in (answer.error or "")
    assert bench.engine.scheduler.prefix_cache.num_retained == 0


@pytest.mark.skipif(not backend_selector.has_int8_dot_products(), reason="this CPU serves float by default")
@pytest.mark.parametrize(
    "kernels", ["native", pytest.param("torch", marks=[] if library.unavailable_reason() else pytest.mark.slow)]
)
def test_the_embedded_base_in_8_bits(embedded_base: BaseInfo, tmp_path: Path, kernels: str) -> None:
    if kernels == "native" and (obstacle := library.unavailable_reason()):
        pytest.skip(obstacle)
    prompts = Prompts(Path(embedded_base.path))
    kinds = [kind for kind in INT8_COSINE if kind is not None]
    for index, kind in enumerate(kinds):
        zoo.make_adapter(embedded_base, tmp_path / kind, zoo.KINDS[kind], seed=index, strength=0.02)
    adapters = {kind: tmp_path / kind for kind in kinds}
    bench = zoo.Bench(embedded_base, adapters, quantize="int8", kernels=kernels, cache_bytes=512 << 20)
    asked = {
        f"{name}-{i}-{pooling}": (name, prompts.encode(text), pooling)
        for name in (None, *kinds)
        for i, text in enumerate(TEXTS)
        for pooling in POOLINGS
    }
    for request_id, (name, tokens, pooling) in asked.items():
        bench.embed(request_id, tokens, name, pooling)
    answers = bench.run()
    models: dict[str | None, Any] = {None: zoo.load_reference(embedded_base)}
    models |= {name: zoo.with_adapter(embedded_base, adapters[name]) for name in kinds}
    for request_id, (name, tokens, pooling) in asked.items():
        said = torch.tensor(answers[request_id].embedding)
        cosine = float(said @ zoo.reference_embedding(models[name], tokens, pooling))
        print(f"{request_id}: {cosine:.4f}")
        assert cosine > INT8_COSINE[name]
