"""The engine: each request gets its own answer whatever the batch, and always ends."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from graftwork.server.engine.model.layers import Grafts
from graftwork.server.engine.model.weights import NF4Weights
from graftwork.server.engine.request import FinishReason
from tests.engine import zoo


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> zoo.BaseInfo:
    return zoo.make_base("llama", tmp_path_factory.mktemp("llama"), tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def adapters(base: zoo.BaseInfo, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    for index in range(4):
        zoo.make_adapter(base, root / f"a{index}", zoo.KINDS["rank-16"], seed=index)
    return {f"a{index}": root / f"a{index}" for index in range(4)}


def prompt(seed: int, length: int = 12) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(256) for _ in range(length)]


@pytest.mark.parametrize(("quantize", "temperature"), [("none", 0.0), ("none", 1.0), ("int8", 0.0)])
def test_an_answer_does_not_depend_on_who_else_is_in_the_batch(
    base: zoo.BaseInfo, adapters: dict[str, Path], quantize: str, temperature: float
) -> None:
    asked: dict[str, dict[str, Any]] = {}
    for name in (None, *adapters):
        for index in range(3):
            options = {"temperature": temperature, "seed": index, "max_tokens": 24}
            asked[f"{name}-{index}"] = {"prompt": prompt(index, 5 + 9 * index), "adapter": name, **options}
    bench = zoo.Bench(base, adapters, quantize=quantize, step_tokens=32)
    for request_id, request in asked.items():
        bench.add(request_id, **request)
    together = bench.run()
    for request_id, request in asked.items():
        bench.add(request_id, **request)
        alone = bench.run()[request_id]
        assert together[request_id].tokens == alone.tokens
        # int8: a neighbour's last float32 bit may tip an activation's second digit.
        tolerance = 1e-4 if quantize == "none" else 0.01
        assert together[request_id].logprobs == pytest.approx(alone.logprobs, abs=tolerance)


def test_preempted_sequences_say_what_they_would_have_said(base: zoo.BaseInfo, adapters: dict[str, Path]) -> None:
    roomy, tight = zoo.Bench(base, adapters), zoo.Bench(base, adapters, cache_bytes=90 * 3 * 2 * 2 * 16 * 4)
    for bench in (roomy, tight):
        for index in range(6):
            bench.add(str(index), prompt(index, 20), f"a{index % 4}", temperature=0.8, seed=index, max_tokens=30)
    expected, answers = roomy.run(), tight.run()
    assert roomy.engine.scheduler.num_preemptions == 0
    assert tight.engine.scheduler.num_preemptions > 0
    for request_id, answer in expected.items():
        assert answers[request_id].tokens == answer.tokens
        assert answers[request_id].prompt_logprobs == pytest.approx(answer.prompt_logprobs, abs=1e-4)
        assert answers[request_id].finish_reason is FinishReason.LENGTH


def test_stop_tokens_minimum_and_maximum(base: zoo.BaseInfo) -> None:
    bench = zoo.Bench(base, {})
    bench.add("free", prompt(1), max_tokens=20)
    free = bench.run()["free"].tokens
    stop = free[5]
    first = free.index(stop)
    bench.add("stopped", prompt(1), max_tokens=20, stop_token_ids=frozenset({stop}))
    bench.add("held-off", prompt(1), max_tokens=20, stop_token_ids=frozenset({stop}), min_tokens=15)
    bench.add("none", prompt(1), max_tokens=0)
    answers = bench.run()
    assert answers["stopped"].tokens == free[:first]
    assert answers["stopped"].finish_reason is FinishReason.STOP
    assert len(answers["held-off"].tokens) >= 15
    assert stop not in answers["held-off"].tokens[:15]
    assert answers["none"].tokens == []
    assert answers["none"].finish_reason is FinishReason.LENGTH
    assert len(answers["none"].prompt_logprobs) == len(prompt(1)) - 1


def test_penalties_and_seeds(base: zoo.BaseInfo) -> None:
    bench = zoo.Bench(base, {})
    bench.add("plain", prompt(2), max_tokens=40)
    bench.add("varied", prompt(2), max_tokens=40, frequency_penalty=2.0, presence_penalty=2.0)
    for name in ("one", "same"):
        bench.add(name, prompt(2), max_tokens=40, temperature=1.5, seed=7, top_p=0.9)
    bench.add("other", prompt(2), max_tokens=40, temperature=1.5, seed=8, top_p=0.9)
    bench.add("narrow", prompt(2), max_tokens=40, temperature=2.0, seed=8, top_p=1e-9)
    answers = bench.run()
    assert len(set(answers["varied"].tokens)) > len(set(answers["plain"].tokens))
    assert answers["one"].tokens == answers["same"].tokens != answers["other"].tokens
    assert answers["narrow"].tokens == answers["plain"].tokens


def test_a_seed_gives_the_same_tokens_beside_rows_that_sample_otherwise(base: zoo.BaseInfo) -> None:
    bench = zoo.Bench(base, {})
    asked = {f"{top_p}": {"temperature": 1.0, "top_p": top_p, "seed": 5, "max_tokens": 30} for top_p in (1.0, 0.9, 0.5)}
    for name, options in asked.items():
        bench.add(name, prompt(1), **options)
    bench.add("greedy", prompt(1), max_tokens=30)
    together = bench.run()
    for name, options in asked.items():
        bench.add(name, prompt(1), **options)
        assert bench.run()[name].tokens == together[name].tokens


def test_sampling_follows_the_distribution(base: zoo.BaseInfo) -> None:
    """4,000 draws at one place against the model's own probabilities, by chi-square."""
    bench = zoo.Bench(base, {}, max_sequences=64)
    bench.add("top", prompt(3), max_tokens=1, top_logprobs=20)
    draws = 4000
    for index in range(draws):
        bench.add(str(index), prompt(3), max_tokens=1, temperature=1.0, seed=index, prompt_logprobs=None)
    answers = bench.run()
    reference = zoo.load_reference(base)
    with torch.no_grad():
        probs = torch.softmax(reference(input_ids=torch.tensor([prompt(3)])).logits[0, -1].float(), -1)
    best = probs.topk(12).indices.tolist()
    counts = [sum(answers[str(i)].tokens == [token] for i in range(draws)) for token in best]
    expected = [draws * probs[token].item() for token in best]
    chi_square = sum((seen - wanted) ** 2 / wanted for seen, wanted in zip(counts, expected, strict=True))
    assert chi_square < 36  # 12 degrees of freedom, one in 3,000


def test_aborting_frees_everything_and_disturbs_nobody(base: zoo.BaseInfo, adapters: dict[str, Path]) -> None:
    bench = zoo.Bench(base, adapters)
    bench.add("stays", prompt(4), "a1", max_tokens=20)
    expected = bench.run()["stays"].tokens
    bench.add("stays", prompt(4), "a1", max_tokens=20)
    bench.add("goes", prompt(5, 100), "a2", max_tokens=100)
    bench.add("waits", prompt(6), "a3", max_tokens=100)
    for _ in range(3):
        bench.engine.step()
    bench.engine.abort("goes")
    bench.engine.abort("waits")
    bench.engine.abort("nobody")
    answers = bench.run()
    assert bench.engine.scheduler.get("stays") is None
    assert answers["stays"].tokens == expected[-len(answers["stays"].tokens) :]
    assert all(
        adapter.num_running == adapter.num_waiting == 0 for adapter in bench.engine.adapter_cache.adapters.values()
    )


def test_an_adapter_that_makes_the_output_infinite_ends_only_its_own_requests(
    base: zoo.BaseInfo, adapters: dict[str, Path], tmp_path: Path
) -> None:
    """And leaves nothing in the cache that could reach whoever gets its slot next."""
    zoo.make_adapter(base, tmp_path / "hot", zoo.KINDS["rank-16"], seed=9)
    file = tmp_path / "hot" / "adapter_model.safetensors"
    save_file({key: tensor * 1e30 for key, tensor in load_file(file).items()}, file)
    bench = zoo.Bench(base, {**adapters, "hot": tmp_path / "hot"}, max_sequences=3)
    bench.add("good", prompt(1), "a0")
    expected = bench.run()["good"].tokens
    for index in range(6):
        bench.add(f"bad-{index}", prompt(index, 40), "hot", prompt_logprobs=None)
        bench.add(f"good-{index}", prompt(1), "a0")
    answers = bench.run()
    for index in range(6):
        assert answers[f"bad-{index}"].finish_reason is FinishReason.ERROR
        assert "not finite" in (answers[f"bad-{index}"].error or "")
        assert answers[f"good-{index}"].tokens == expected
    bench.add("scored", prompt(7, 40), "hot", prompt_logprobs=1, max_tokens=0)
    scored = bench.run()["scored"]
    assert scored.finish_reason is FinishReason.ERROR
    assert "not finite" in (scored.error or "")
    assert not scored.prompt_logprobs
    bench.add("after", prompt(1), "a0")
    assert bench.run()["after"].tokens == expected


def test_an_adapter_that_cannot_be_read_is_one_error(base: zoo.BaseInfo, adapters: dict[str, Path]) -> None:
    bench = zoo.Bench(base, adapters)
    bench.digests["lost"] = "sha256:0000"
    bench.add("lost", prompt(1), "lost")
    bench.add("fine", prompt(1), "a0")
    answers = bench.run()
    assert answers["lost"].finish_reason is FinishReason.ERROR
    assert "could not be loaded" in (answers["lost"].error or "")
    assert len(answers["fine"].tokens) == 8


def test_what_can_never_run_is_answered_at_once(base: zoo.BaseInfo) -> None:
    bench = zoo.Bench(base, {}, max_length=64)
    bench.add("empty", [])
    bench.add("long", prompt(1, 64))
    bench.add("fits", prompt(1, 60), max_tokens=100)
    bench.add("only scored", prompt(1, 64), max_tokens=0, prompt_logprobs=0)
    bench.add("scored and too long", prompt(1, 65), max_tokens=0, prompt_logprobs=0)
    answers = bench.run()
    assert answers["only scored"].finish_reason is FinishReason.LENGTH
    assert answers["scored and too long"].finish_reason is FinishReason.ERROR
    assert answers["empty"].finish_reason is answers["long"].finish_reason is FinishReason.ERROR
    assert answers["fits"].finish_reason is FinishReason.LENGTH
    assert len(answers["fits"].tokens) == 4


def test_a_failing_step_ends_its_requests_and_the_engine_goes_on(
    base: zoo.BaseInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = zoo.Bench(base, {})
    run = bench.engine.runner.run
    failures = iter([True])

    def fail_once(work: object) -> object:
        if next(failures, False):
            raise MemoryError("out of memory")
        return run(work)  # type: ignore[arg-type]

    monkeypatch.setattr(bench.engine.runner, "run", fail_once)
    bench.add("first", prompt(1))
    assert bench.run()["first"].finish_reason is FinishReason.ERROR
    bench.add("second", prompt(1))
    assert bench.run()["second"].finish_reason is FinishReason.LENGTH


def test_long_and_short_rows_are_not_padded_to_one_another(base: zoo.BaseInfo, tmp_path: Path) -> None:
    """Rows beyond the common padding length take the gathered path and say the same."""
    info = zoo.make_base("llama-long", tmp_path / "base", tmp_path / "home")
    bench = zoo.Bench(info, {}, max_length=1500, step_tokens=512)
    lengths = [3, 1100, 40, 700, 1300, 5]
    for index, length in enumerate(lengths):
        bench.add(str(index), prompt(index, length), max_tokens=4)
    answers = bench.run()
    model = zoo.load_reference(info)
    for index, length in enumerate(lengths):
        answer = answers[str(index)]
        expected = zoo.reference_logprobs(model, prompt(index, length) + answer.tokens)
        assert answer.prompt_logprobs + answer.logprobs == pytest.approx(expected, abs=1e-3)


def test_nf4_weights_act_as_their_dequantized_selves(base: zoo.BaseInfo, adapters: dict[str, Path]) -> None:
    """bitsandbytes' 4-bit path, as far as a CPU can tell."""
    bench = zoo.Bench(base, adapters, quantize="nf4")
    assert bench.card.quantize == "nf4"
    for index, name in enumerate((None, "a0", "a1")):
        bench.add(str(name), prompt(index, 30), name)
    answers = bench.run()
    for index, name in enumerate((None, "a0", "a1")):
        model = zoo.load_reference(base) if name is None else zoo.with_adapter(base, adapters[name])
        with torch.no_grad():
            for path, module in model.named_modules():
                if isinstance(module, torch.nn.Linear) and "lora" not in path:
                    weight = NF4Weights([module.weight.data.clone()], torch.float32).dense()
                    module.weight = torch.nn.Parameter(weight.view_as(module.weight))
        answer = answers[str(name)]
        expected = zoo.reference_logprobs(model, prompt(index, 30) + answer.tokens)
        assert answer.prompt_logprobs + answer.logprobs == pytest.approx(expected, abs=1e-3)


def test_an_adapter_that_cannot_be_seated_is_one_error(
    base: zoo.BaseInfo, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = zoo.Bench(base, adapters)
    set_lora = Grafts.set_lora

    def fail_for_a0(grafts: Grafts, adapter: Any, pages: Any) -> None:
        if adapter.digest == bench.digests["a0"]:
            raise MemoryError("no room")
        set_lora(grafts, adapter, pages)

    monkeypatch.setattr(Grafts, "set_lora", fail_for_a0)
    bench.add("fails", prompt(1), "a0")
    bench.add("fine", prompt(1), "a1")
    answers = bench.run()
    assert "no room" in (answers["fails"].error or "")
    assert answers["fine"].finish_reason is FinishReason.LENGTH
    bench.engine.adapter_cache.check_integrity()
    monkeypatch.undo()
    bench.add("again", prompt(1), "a0")
    assert bench.run()["again"].finish_reason is FinishReason.LENGTH
