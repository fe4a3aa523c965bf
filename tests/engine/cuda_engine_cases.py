"""The whole engine the way it goes on a card, against single-adapter PEFT.

Without a card (``TRITON_INTERPRET=1``) the kernels are interpreted and the graphs are replayed by hand: the same
computation again, from the same places into the same places. Run like ``triton_cases.py``.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.engine.gpu_kernels import build_cases
from benchmarks.engine.gpu_roofline import Base, StepShape
from graftwork.server.engine import backend_selector
from graftwork.server.engine.backends.cuda import attention_kernels, graphs, lora_kernels
from graftwork.server.engine.backends.cuda.forward import CudaGraphForward, TritonForward
from tests.engine import zoo
from tests.engine.triton_cases import DEVICE, INTERPRETED, pytestmark  # noqa: F401


class Replayer:
    """Stands where CUDA graphs stand. What a capture would refuse is refused."""

    def record(self, compute: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        with NothingThatWaits():
            result = compute()

        def replay() -> None:
            result.copy_(compute())

        return result, replay


class Refuses:
    def record(self, compute: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        raise RuntimeError("operation not permitted when stream is capturing")


class NothingThatWaits(TorchDispatchMode):
    """Refuses what makes the host wait for the device, or puts numbers there that a graph would freeze."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "equal", "is_nonzero")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name == "index" and any(t is not None and t.dtype == torch.bool for t in args[1])
        if by_mask or name in self.WAITING:
            raise AssertionError(f"{func} waits for the device")
        if name == "lift_fresh" and args[0].dim() > 0:
            raise AssertionError("a tensor is made of Python's numbers while a graph is captured")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "waiting", [lambda t: t[0].item(), lambda t: t[t > 0], lambda t: t + torch.tensor([1, 2]), lambda t: bool(t.all())]
)
def test_a_capture_refuses_what_waits(waiting: Callable[[Tensor], object]) -> None:
    ones = torch.ones(2)
    with pytest.raises(AssertionError), NothingThatWaits():
        waiting(ones)


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., zoo.Bench]:
    """Builds engines that go a card's way, on the CPU if need be."""

    def build(info: zoo.BaseInfo, adapters: dict[str, Path], recorder: Any = Replayer, **config: Any) -> zoo.Bench:
        if INTERPRETED:
            choose = backend_selector.choose
            monkeypatch.setattr(backend_selector, "choose", lambda **wish: replace(choose(**wish), kernels="triton"))
        if INTERPRETED or recorder is not Replayer:
            monkeypatch.setattr(graphs, "CudaGraphRecorder", lambda device: recorder())
        options = {"device": DEVICE.type, "cache_bytes": 2 << 20, "max_length": 128, "step_tokens": 128}
        bench = zoo.Bench(info, adapters, **{**options, **config})
        assert isinstance(bench.engine.runner.forward, TritonForward)
        return bench

    return build


def num_replayed(bench: zoo.Bench) -> int:
    decoder = bench.engine.runner.fast_path
    assert isinstance(decoder, CudaGraphForward)
    return decoder.num_replayed


PLAIN = ["rank-16", "rank-5", "rank-64", "q-and-v", "mlp-only"]
SPECIAL = ["dora", "norm-saved"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> zoo.BaseInfo:
    return zoo.make_base("llama", tmp_path_factory.mktemp("llama"), tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def adapters(base: zoo.BaseInfo, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    for index, name in enumerate([*PLAIN, *SPECIAL]):
        zoo.make_adapter(base, root / name, zoo.KINDS[name], seed=index)
    return {name: root / name for name in [*PLAIN, *SPECIAL]}


def check(bench: zoo.Bench, adapters: dict[str, Path], asked: list[tuple[str | None, int]]) -> None:
    """Prompts of some lengths at once, four tokens each, then an embedding each; then each alone through PEFT."""
    rng = random.Random(0)
    prompts = {f"{name}-{i}": (name, [rng.randrange(256) for _ in range(n)]) for i, (name, n) in enumerate(asked)}
    for request_id, (name, prompt) in prompts.items():
        bench.add(request_id, prompt, name, max_tokens=4)
    answers = bench.run()
    for index, (request_id, (name, prompt)) in enumerate(prompts.items()):
        bench.embed(request_id, prompt, name)
        if index % 2:
            bench.add(f"beside {request_id}", prompt, name, max_tokens=1)
    embedded = bench.run()
    for request_id, (name, prompt) in prompts.items():
        answer, embedding = answers[request_id], embedded[request_id].embedding
        assert answer.error is None
        model = zoo.load_reference(bench.info) if name is None else zoo.with_adapter(bench.info, adapters[name])
        expected = zoo.reference_logprobs(model, prompt + answer.tokens)
        said = answer.prompt_logprobs + answer.logprobs
        assert max(abs(a - b) for a, b in zip(said, expected, strict=True)) < 1e-3, request_id
        assert embedding == pytest.approx(zoo.reference_embedding(model, prompt, "mean").tolist(), abs=1e-4), request_id


def test_the_smallest_engine(base: zoo.BaseInfo, adapters: dict[str, Path], on_gpu: Callable[..., zoo.Bench]) -> None:
    bench = on_gpu(base, adapters, num_slots=1, max_sequences=1)
    assert bench.card.kernels == "triton"
    check(bench, adapters, [("rank-5", 3)])
    assert num_replayed(bench) == 3


def test_plain_adapters_decode_in_graphs(
    base: zoo.BaseInfo, adapters: dict[str, Path], on_gpu: Callable[..., zoo.Bench]
) -> None:
    bench = on_gpu(base, adapters, num_slots=9, max_sequences=6)
    check(bench, adapters, [(None, 9), *((name, 3 + 9 * i) for i, name in enumerate(PLAIN))])
    assert num_replayed(bench) >= 3


def test_what_a_graph_cannot_do_is_launched_beside(
    base: zoo.BaseInfo, adapters: dict[str, Path], on_gpu: Callable[..., zoo.Bench]
) -> None:
    bench = on_gpu(base, adapters, num_slots=9, max_sequences=4)
    check(bench, adapters, [("dora", 7), ("norm-saved", 40)])
    assert num_replayed(bench) == 0
    check(bench, adapters, [("dora", 5), ("rank-16", 3), ("rank-16", 6)])
    assert num_replayed(bench) >= 3


def test_windows_and_soft_caps(tmp_path: Path, on_gpu: Callable[..., zoo.Bench]) -> None:
    info = zoo.make_base("gemma2", tmp_path / "base", tmp_path / "home")
    zoo.make_adapter(info, tmp_path / "rank-5", zoo.KINDS["rank-5"], seed=1)
    adapters = {"rank-5": tmp_path / "rank-5"}
    bench = on_gpu(info, adapters, num_slots=2, max_sequences=2, step_tokens=32)
    check(bench, adapters, [("rank-5", 45), (None, 21)])
    assert num_replayed(bench) >= 3


def test_adapters_on_head_and_embedding(tmp_path: Path, on_gpu: Callable[..., zoo.Bench]) -> None:
    info = zoo.make_base("llama-untied", tmp_path / "base", tmp_path / "home")
    adapters = {}
    for index, (name, kind) in enumerate(zoo.UNTIED_KINDS.items()):
        zoo.make_adapter(info, tmp_path / name, kind, seed=index)
        adapters[name] = tmp_path / name
    bench = on_gpu(info, adapters, num_slots=4, max_sequences=4)
    check(bench, adapters, [(name, 4 + index) for index, name in enumerate(adapters)])
    assert num_replayed(bench) == 0


def test_a_base_that_cannot_be_captured_is_served(
    base: zoo.BaseInfo, adapters: dict[str, Path], on_gpu: Callable[..., zoo.Bench], caplog: pytest.LogCaptureFixture
) -> None:
    bench = on_gpu(base, adapters, recorder=Refuses, num_slots=4, max_sequences=2)
    assert "not permitted when stream is capturing" in caplog.text
    assert bench.engine.runner.fast_path is None
    check(bench, adapters, [("rank-16", 3)])


class Watched:
    """Stands before a kernel and notes what Triton would compile it for: types, constants, what is divisible by 16."""

    def __init__(self, kernel: Any, compiled: set[tuple[object, ...]]) -> None:
        self.kernel, self.compiled = kernel, compiled

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*values: Any, **named: Any) -> None:
            given = dict(zip(self.kernel.arg_names, values, strict=False)) | named
            self.compiled.add((self.kernel.__name__, *(self.fact(name, given[name]) for name in sorted(given))))
            self.kernel[grid](*values, **named)

        return launch

    def fact(self, name: str, value: Any) -> tuple[object, ...]:
        if isinstance(value, Tensor):
            return name, value.dtype, value.data_ptr() % 16 == 0
        if isinstance(value, int) and name.islower():
            return name, 1 if value == 1 else value % 16 == 0
        return name, str(value)


def test_nothing_is_compiled_while_a_request_waits(
    base: zoo.BaseInfo,
    adapters: dict[str, Path],
    on_gpu: Callable[..., zoo.Bench],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled: set[tuple[object, ...]] = set()
    for module, names in (
        (lora_kernels, ("shrink", "expand")),
        (attention_kernels, ("write_slots", "attend_rows", "merge_rows", "attend_tiles")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, Watched(getattr(module, name), compiled))
    bench = on_gpu(base, adapters, num_slots=9, max_sequences=3)
    at_start = set(compiled)
    check(bench, adapters, [("rank-64", 3), (None, 40), ("dora", 50), ("rank-64", 37), ("rank-64", 1)])
    assert compiled == at_start


def test_the_benchmark_launches_what_it_names() -> None:
    base = Base(name="tiny", hidden=64, layers=1, heads=4, kv_heads=2, dim=16, intermediate=96, vocabulary=100)
    names = []
    for case in build_cases(base, StepShape(rows=4, adapters=2, context=20), 40, DEVICE, torch.float32):
        case.run()
        assert case.cost.num_bytes > 0
        assert case.cost.flops > 0
        names.append(case.name)
    assert "shrink q, k, v, decode" in names
    assert "attention, prompt" in names
