"""The engine on a GPU, with real CUDA graphs and NF4: the cases of the interpreter, and some more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from graftwork.server.engine.backends.cuda.forward import CudaGraphForward
from graftwork.server.engine.backends.cuda.graphs import CudaGraphRecorder
from graftwork.server.engine.batch import Batch, ForwardOutput
from graftwork.server.engine.model.weights import NF4Weights
from tests.conftest import CHECKOUT
from tests.engine import zoo
from tests.engine.cuda_engine_cases import *  # noqa: F403
from tests.engine.cuda_engine_cases import PLAIN, TritonForward, num_replayed
from tests.gpu import needs_card

pytestmark = [pytest.mark.gpu, needs_card]

CUDA = torch.device("cuda")


def bench_on_card(info: zoo.BaseInfo, adapters: dict[str, Path], **config: object) -> zoo.Bench:
    options = {"device": "cuda", "cache_bytes": 8 << 20, "max_length": 128, "num_slots": 9, "max_sequences": 8}
    return zoo.Bench(info, adapters, **{**options, **config})


def ask(bench: zoo.Bench) -> dict[str, zoo.Answered]:
    for index, name in enumerate([None, *PLAIN]):
        bench.add(f"{name}", [7 * index + i for i in range(3 + 5 * index)], name, max_tokens=12)
    answers = bench.run()
    assert all(answer.error is None for answer in answers.values())
    return answers


def apart(some: dict[str, zoo.Answered], others: dict[str, zoo.Answered]) -> float:
    pairs = [(some[name].logprobs, others[name].logprobs) for name in some]
    return max(abs(a - b) for these, those in pairs for a, b in zip(these, those, strict=True))


def test_graphs_say_what_launches_say(base: zoo.BaseInfo, adapters: dict[str, Path]) -> None:
    graphs, launches = bench_on_card(base, adapters), bench_on_card(base, adapters)
    launches.engine.runner.fast_path = None
    assert apart(ask(graphs), ask(launches)) < 1e-5
    assert num_replayed(graphs) > 10


def test_our_kernels_say_what_torch_says(base: zoo.BaseInfo, adapters: dict[str, Path]) -> None:
    ours, plain = bench_on_card(base, adapters), bench_on_card(base, adapters, kernels="torch")
    assert not isinstance(plain.engine.runner.forward, TritonForward)
    assert apart(ask(ours), ask(plain)) < 1e-4


@pytest.mark.parametrize("kind", [CudaGraphForward, TritonForward])
def test_a_step_never_waits_for_the_card(
    kind: type[TritonForward | CudaGraphForward],
    base: zoo.BaseInfo,
    adapters: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = bench_on_card(base, adapters)
    ask(bench)  # everything is compiled
    compute = kind.__call__

    def strictly(self: TritonForward | CudaGraphForward, rows: Batch) -> ForwardOutput:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return compute(self, rows)  # type: ignore[arg-type]
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(kind, "__call__", strictly)
    if kind is TritonForward:
        bench.engine.runner.fast_path = None
    ask(bench)


@pytest.mark.parametrize("num_rows", [1, 4, 5, 32, 300])
@pytest.mark.parametrize("num_inputs", [1024, 96])
def test_nf4_in_a_graph(num_rows: int, num_inputs: int) -> None:
    torch.manual_seed(num_rows)
    weights = NF4Weights([torch.randn(width, num_inputs, device=CUDA) for width in (1024, 256)], torch.bfloat16)
    x = torch.randn(num_rows, num_inputs, device=CUDA, dtype=torch.bfloat16)
    expected = x.float() @ weights.dense().T
    with torch.inference_mode():
        eager = weights.matmul(x).clone()
        captured, replay = CudaGraphRecorder(CUDA).record(lambda: weights.matmul(x))
        captured.zero_()
        replay()
    for y in (eager, captured):
        assert (y.float() - expected).abs().max() < 0.02 * expected.abs().max()


def test_an_engine_in_nf4(base: zoo.BaseInfo, adapters: dict[str, Path]) -> None:
    bench = bench_on_card(base, adapters, quantize="nf4", dtype="bfloat16")
    assert bench.card.kernels == "triton"
    ask(bench)
    assert num_replayed(bench) > 10


def test_the_second_card_by_name(base: zoo.BaseInfo, adapters: dict[str, Path]) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two cards")
    ask(bench_on_card(base, adapters, device="cuda:1"))


def test_every_kernel_is_measured() -> None:
    arguments = ["--rows", "4", "--adapters", "2", "--context", "64", "--prompt", "128"]
    command = [sys.executable, "-m", "benchmarks.engine.gpu_kernels", *arguments]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 4 * 4 + 2 + 5
    assert all(float(row[1]) > 0 for row in rows)
