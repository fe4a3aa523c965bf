"""The native kernels compared with plain torch, and the decoder compared with Hugging Face's modules."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.errors import ConfigurationError
from graftwork.server.engine.backends.cpu import library
from graftwork.server.engine.backends.cpu.context import KernelContext, RowAdapters
from graftwork.server.engine.backends.cpu.interface import (
    ADD_NORM,
    ATTEND,
    GELU_TIMES,
    NORM,
    PLAIN,
    SILU_TIMES,
    AttentionFields,
    OpFields,
    StepFields,
)
from graftwork.server.engine.backends.cpu.linear import CpuLinear
from graftwork.server.engine.lora.host_adapter import LinearGraft, _paged
from graftwork.server.engine.lora.plan import AdapterRun, LoraPlan
from graftwork.server.engine.runner import Runner
from tests.conftest import TEST_HOME
from tests.engine import cpu_oracle as oracle
from tests.engine import zoo

pytestmark = pytest.mark.skipif(bool(library.unavailable_reason()), reason=library.unavailable_reason() or "")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def machine() -> KernelContext:
    return KernelContext(library.load(TEST_HOME / "kernels"), 2)


# -- parts -------------------------------------------------------------------------------------------------------------
def graft(rank: int, num_inputs: int, num_outputs: int, size: float) -> LinearGraft:
    """An adapter of a layer. B grows as A shrinks: bytes must take both."""
    a, b = torch.randn(rank, num_inputs) * size, torch.randn(rank, num_outputs) / size / num_inputs
    return LinearGraft(a=_paged(a, torch.float32), b=_paged(b, torch.float32), magnitude=None, bias=None)


def added(graft: LinearGraft, x: Tensor) -> Tensor:
    """What an adapter adds for inputs [T, K], page by page as the kernels round it."""
    total = torch.zeros(len(x), graft.b.shape[2])
    for a, b in zip(graft.a, graft.b, strict=True):
        ranks = oracle.rounded(x) @ oracle.rounded_rows(a).t()
        total += oracle.rounded_rows(ranks) @ oracle.rounded_rows(b.t()).t()
    return total


@pytest.mark.parametrize("num_inputs", [8, 64, 100, 576])
@pytest.mark.parametrize("outputs", [(16,), (33, 7, 64), (96, 96)])
def test_projections_with_adapters(machine: KernelContext, num_inputs: int, outputs: tuple[int, ...]) -> None:
    torch.manual_seed(num_inputs)
    rng = random.Random(num_inputs)
    weights = [torch.randn(size, num_inputs) for size in outputs]
    bias = torch.randn(sum(outputs))
    linear = CpuLinear(weights, bias, 12, machine)
    assert (linear.dense() - torch.cat(weights)).abs().max() < 0.05
    grafts: dict[str, dict[int, LinearGraft]] = {}
    pages: dict[str, tuple[int, ...]] = {}
    free = list(range(12))
    for name, rank, size in (("one", 1, 1e-4), ("sixteen", 16, 1.0), ("forty", 40, 1e4), ("none", 3, 1.0)):
        pages[name] = tuple(free.pop(rng.randrange(len(free))) for _ in range(-(-rank // 16)))
        touched = [member for member in range(len(outputs)) if name != "none" and (member + len(name)) % 3]
        grafts[name] = {member: graft(rank, num_inputs, outputs[member], size) for member in touched}
        linear.write(pages[name], linear.pack(grafts[name]) if touched else None)
    for num_rows in (1, 2, 5, 7, 16, 41):
        x = torch.randn(num_rows, num_inputs) * torch.rand(num_rows, 1) * 10
        runs: list[AdapterRun] = []
        place = rng.randrange(2)
        for name in rng.sample(list(pages), 4):
            stop = min(num_rows, place + rng.randrange(9))
            if stop > place:
                runs.append(AdapterRun(place, stop, name, pages[name]))
            place = stop
        y = torch.zeros(num_rows, sum(outputs) + 5)
        adapters = RowAdapters(runs, num_rows)
        op = linear.op(x, y, with_bias=True)
        step = StepFields(num_rows=num_rows, adapters=adapters.fields)
        machine.run((OpFields * 1)(op), step)
        expected = oracle.rounded(x) @ linear.dense().t() + bias
        for run in runs:
            rows = slice(run.start, run.stop)
            for member, its in grafts[run.digest].items():
                expected[rows, linear.members[member]] += added(its, x[rows])
        assert torch.equal(y[:, sum(outputs) :], torch.zeros(num_rows, 5))
        difference = (y[:, : sum(outputs)] - expected).abs().max() / expected.abs().max()
        assert difference < 2e-3  # what float32 rounds otherwise, and a byte of A·x that tips over for it
        # A row does not know its neighbours: alone it is the same to the last bit.
        row = rng.randrange(num_rows)
        own = [AdapterRun(0, 1, run.digest, run.pages) for run in runs if run.start <= row < run.stop]
        alone = linear.apply(x[row : row + 1], LoraPlan(own, CPU) if own else None)
        assert torch.equal(linear.apply(x, LoraPlan(runs, CPU) if runs else None)[row], alone[0])
        # Adding to what is there, with the bias and without.
        before = torch.randn_like(y)
        again = before.clone()
        machine.run((OpFields * 1)(linear.op(x, again, accumulate=True, with_bias=True)), step)
        assert torch.equal(again[:, : sum(outputs)], before[:, : sum(outputs)] + y[:, : sum(outputs)])


def test_an_adapter_that_left_leaves_nothing(machine: KernelContext) -> None:
    linear = CpuLinear([torch.randn(32, 64), torch.randn(32, 64)], None, 2, machine)
    first = graft(32, 64, 32, 1.0)
    linear.write([0, 1], linear.pack({0: first, 1: first}))
    linear.write([1], None)
    x = torch.randn(3, 64)
    assert torch.equal(linear.apply(x, LoraPlan([AdapterRun(0, 3, "x", (1,))], CPU)), linear.apply(x, None))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 17, 99])
def test_what_is_not_finite_stays_so_and_stays_alone(machine: KernelContext, bad: float, place: int) -> None:
    linear = CpuLinear([torch.randn(32, 100)], None, 1, machine)
    linear.write([0], linear.pack({0: graft(16, 100, 32, 1.0)}))
    x = torch.randn(5, 100)
    plan = LoraPlan([AdapterRun(0, 5, "x", (0,))], CPU)
    whole = linear.apply(x, plan)
    x[2, place] = bad
    broken = linear.apply(x, plan)
    assert not broken[2].isfinite().any()
    assert torch.equal(broken[[0, 1, 3, 4]], whole[[0, 1, 3, 4]])


@pytest.mark.parametrize("prologue", [PLAIN, NORM, SILU_TIMES, GELU_TIMES])
@pytest.mark.parametrize("width", [16, 40, 576])
def test_prologues(machine: KernelContext, prologue: int, width: int) -> None:
    torch.manual_seed(width)
    linear = CpuLinear([torch.randn(32, width)], None, 1, machine)
    x = torch.randn(9, 2 * width) * 3
    norm = torch.randn(width)
    gate, up = x.chunk(2, dim=1)
    inputs = {
        PLAIN: gate,
        NORM: oracle.rms_norm(gate, norm, 1e-5),
        SILU_TIMES: nn.functional.silu(gate) * up,
        GELU_TIMES: nn.functional.gelu(gate, approximate="tanh") * up,
    }[prologue]
    y = torch.empty(9, 32)
    machine.run(
        (OpFields * 1)(linear.op(x, y, prologue=prologue, norm=norm, eps=1e-5)),
        StepFields(num_rows=9, adapters=RowAdapters([], 9).fields),
    )
    expected = oracle.rounded(inputs) @ linear.dense().t()
    # Where float32 rounds the last bit otherwise, an 8-bit digit may tip over: one step of one input.
    assert (y - expected).abs().max() / expected.abs().max() < 0.01
    assert (y - expected).abs().mean() / expected.abs().mean() < 1e-3


def test_norms_that_are_added(machine: KernelContext) -> None:
    x, y, norm = torch.randn(6, 40), torch.randn(6, 40), torch.randn(40)
    expected = y + oracle.rms_norm(x, norm, 1e-6)
    fields = {"x": x.data_ptr(), "y": y.data_ptr(), "x_width": 40, "y_width": 40}
    machine.run(
        (OpFields * 1)(OpFields(kind=ADD_NORM, norm=norm.data_ptr(), eps=1e-6, **fields)), StepFields(num_rows=6)
    )
    assert torch.allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "rotary", "window", "softcap", "normed"),
    [
        (9, 3, 64, 64, 0, 0.0, False),
        (4, 4, 24, 24, 0, 0.0, True),
        (8, 1, 16, 8, 5, 0.0, False),
        (12, 1, 80, 80, 0, 20.0, False),
        (2, 2, 128, 64, 9, 50.0, True),
    ],
)
def test_attention(
    machine: KernelContext, heads: int, kv_heads: int, dim: int, rotary: int, window: int, softcap: float, normed: bool
) -> None:
    """A prompt in two chunks in one slot, and rows that decode in others, against plain attention."""
    torch.manual_seed(heads)
    group, width = heads // kv_heads, (heads + 2 * kv_heads) * dim
    keys, values = (torch.full((4, 50, kv_heads * dim), 7.0, dtype=torch.float16) for _ in range(2))
    told = {slot: torch.randn(length, width) for slot, length in {0: 23, 1: 40, 3: 1}.items()}
    q_norm, k_norm = torch.randn(dim), torch.randn(dim)
    fields = AttentionFields(
        keys=keys.data_ptr(),
        values=values.data_ptr(),
        slot_stride=keys.stride(0),
        num_heads=heads,
        num_kv_heads=kv_heads,
        dim=dim,
        rotary_dim=rotary,
        scale=0.3,
        softcap=softcap,
        window=window,
        q_norm=q_norm.data_ptr() if normed else None,
        k_norm=k_norm.data_ptr() if normed else None,
        eps=1e-6,
    )
    angles = torch.rand(50, rotary // 2).repeat(1, 2) * 6
    said: dict[int, list[Tensor]] = {slot: [] for slot in told}
    steps = [[(0, 0, 10), (1, 0, 39)], [(0, 10, 23), (1, 39, 40), (3, 0, 1)]]
    for parts in steps:
        rows = [(slot, position) for slot, start, stop in parts for position in range(start, stop)]
        x = torch.cat([told[slot][start:stop] for slot, start, stop in parts]).clone()
        y = torch.empty(len(rows), heads * dim)
        slot, position = (torch.tensor(column, dtype=torch.int32) for column in zip(*rows, strict=True))
        cos, sin = angles[position.long()].cos(), angles[position.long()].sin()
        pointers = [(ctypes.c_void_p * 1)(table.data_ptr()) for table in (cos, sin)]
        step = StepFields(
            num_rows=len(rows), slot=slot.data_ptr(), position=position.data_ptr(), cos=pointers[0], sin=pointers[1]
        )
        op = OpFields(
            kind=ATTEND,
            x=x.data_ptr(),
            y=y.data_ptr(),
            x_width=width,
            y_width=heads * dim,
            attention=ctypes.pointer(fields),
        )
        machine.run((OpFields * 1)(op), step)
        for index, (where, _) in enumerate(rows):
            said[where].append(y[index])
    for where, rows_said in said.items():
        x = told[where]
        length = len(x)
        q, k, v = (part.unflatten(1, (-1, dim)) for part in x.split([heads * dim, kv_heads * dim, kv_heads * dim], 1))
        if normed:
            q, k = oracle.rms_norm(q, q_norm, 1e-6), oracle.rms_norm(k, k_norm, 1e-6)
        cos, sin = angles[:length].cos(), angles[:length].sin()
        q, k = oracle.rotate(q, cos, sin), oracle.rotate(k, cos, sin)
        k, v = k.half().float(), v.half().float()
        scores = torch.einsum("thd,shd->hts", q, k.repeat_interleave(group, 1)) * 0.3
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        here, there = torch.arange(length)[:, None], torch.arange(length)
        hidden = there > here
        if window:
            hidden |= there <= here - window
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        expected = torch.einsum("hts,shd->thd", weights, v.repeat_interleave(group, 1)).flatten(1)
        assert torch.allclose(torch.stack(rows_said), expected, atol=2e-5), where
    assert keys[2].eq(7).all()
    assert keys[0, 23:].eq(7).all()


# -- the decoder -------------------------------------------------------------------------------------------------------
def runner_of(bench: zoo.Bench) -> Runner:
    return bench.engine.runner


def native_bench(info: BaseInfo, adapters: dict[str, Path], **config: Any) -> zoo.Bench:
    return zoo.Bench(info, adapters, quantize="int8", dtype="auto", kernels="native", **config)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], BaseInfo]:
    made: dict[str, BaseInfo] = {}

    def make(architecture: str) -> BaseInfo:
        if architecture not in made:
            folder = tmp_path_factory.mktemp(architecture)
            made[architecture] = zoo.make_base(architecture, folder, tmp_path_factory.mktemp("home"))
        return made[architecture]

    return make


ASKED = [
    (length, adapter) for adapter in (None, "rank-16", "rank-64", "rank-5", "q-and-v") for length in (1, 9, 40, 70)
]


@pytest.mark.parametrize("architecture", [name for name in zoo.ARCHITECTURES if name != "llama-long"])
def test_every_architecture(base: Callable[[str], BaseInfo], architecture: str, tmp_path: Path) -> None:
    """The decoder serves it; what it says is what HF's modules say over the same weights; no batch changes a bit."""
    info = base(architecture)
    kinds = ["rank-16", "rank-64", "rank-5", "q-and-v", "rank-pattern"]
    for kind in kinds:
        zoo.make_adapter(info, tmp_path / kind, zoo.KINDS[kind], seed=3)
    adapters = {kind: tmp_path / kind for kind in kinds}
    rng = random.Random(architecture)
    asked = [(f"{name}-{n}", name, [rng.randrange(256) for _ in range(n)]) for n, name in ASKED]

    def answers(together: bool, *, decoder: bool = True, **config: Any) -> dict[str, zoo.Answered]:
        bench = native_bench(info, adapters, **config)
        assert runner_of(bench).fast_path is not None, bench.card.reason
        if not decoder:
            runner_of(bench).fast_path = None
        said: dict[str, zoo.Answered] = {}
        for request_id, name, prompt in asked:
            bench.add(request_id, prompt, name, max_tokens=12)
            if not together:
                said |= bench.run()
        return said | bench.run()

    together = answers(together=True)
    # Alone or in company, whole or in chunks of seven: the same words with the same numbers.
    assert answers(together=False) == together
    assert answers(together=True, step_tokens=7) == together
    by_modules = answers(together=True, decoder=False)
    differences = [
        abs(a - b)
        for request_id, answer in together.items()
        for a, b in zip(answer.prompt_logprobs, by_modules[request_id].prompt_logprobs, strict=True)
    ]
    print(f"{architecture}: mean difference to HF's modules {sum(differences) / len(differences):.4f}")
    assert sum(differences) / len(differences) < 0.05


def test_special_adapters_go_their_own_way(base: Callable[[str], BaseInfo], tmp_path: Path) -> None:
    """DoRA and saved norms in the same steps: right themselves, and nobody else's numbers change."""
    info = base("llama")
    for kind in ("rank-16", "dora", "norm-saved"):
        zoo.make_adapter(info, tmp_path / kind, zoo.KINDS[kind], seed=5)
    adapters = {kind: tmp_path / kind for kind in ("rank-16", "dora", "norm-saved")}
    prompts = {name: [(7 * i + len(str(name))) % 256 for i in range(30)] for name in (None, *adapters)}
    bench = native_bench(info, adapters)
    for name in (None, "rank-16"):
        bench.add(str(name), prompts[name], name)
    without = bench.run()
    for name, prompt in prompts.items():
        bench.add(str(name), prompt, name)
    mixed = bench.run()
    for name in (None, "rank-16"):
        assert mixed[str(name)] == without[str(name)]
    for name in ("dora", "norm-saved"):
        expected = zoo.reference_logprobs(zoo.with_adapter(info, adapters[name]), prompts[name] + mixed[name].tokens)
        said = mixed[name].prompt_logprobs + mixed[name].logprobs
        assert sum(abs(a - b) for a, b in zip(said, expected, strict=True)) / len(said) < 0.25


def test_a_model_that_is_not_what_it_seems(base: Callable[[str], BaseInfo], monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that computes something else under the usual names is noticed, and served through HF's modules."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    def other(self: Any, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x)) * 5
        return out

    monkeypatch.setattr(LlamaMLP, "forward", other)
    bench = native_bench(base("llama"), {})
    assert runner_of(bench).fast_path is None
    assert "nats away" in bench.card.reason
    bench.add("x", [1, 2, 3])
    assert bench.run()["x"].error is None


# -- building ----------------------------------------------------------------------------------------------------------
def test_without_a_compiler(base: Callable[[str], BaseInfo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start does not fail for want of one: it says so and goes on; who asked for the kernels is told."""
    monkeypatch.setattr(library, "compiler", lambda: None)
    bench = zoo.Bench(base("llama"), {}, quantize="int8", dtype="auto", kernels="auto")
    assert bench.card.kernels == "torch"
    assert "no C++ compiler" in bench.card.reason
    with pytest.raises(ConfigurationError, match=r"C\+\+ compiler"):
        native_bench(base("llama"), {})


def test_with_a_compiler_that_fails(
    base: Callable[[str], BaseInfo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho 'no space left' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    cache = tmp_path / "cache"
    bench = zoo.Bench(base("llama"), {}, quantize="int8", dtype="auto", kernels="auto", kernel_cache=cache)
    assert bench.card.kernels == "torch"
    assert "could not be built" in bench.card.reason
    with pytest.raises(ConfigurationError, match="no space left"):
        native_bench(base("llama"), {}, kernel_cache=cache)
    assert list(cache.iterdir()) == []
