"""What the Triton kernels must compute, against plain sums in float64.

Run by ``test_triton_kernels.py`` in Triton's interpreter, in a process of its own, and by ``tests/gpu`` on a card. By
hand: ``TRITON_INTERPRET=1 python -m pytest tests/engine/triton_cases.py``.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from graftwork.server.engine.backends.cuda import attention_kernels, lora_kernels, slot_attention, staging, tiles
from graftwork.server.engine.backends.cuda.lora import DeviceTiles, SegmentedPlan, SegmentedTable, plan_for
from graftwork.server.engine.backends.cuda.self_test import find_obstacle
from graftwork.server.engine.kv.cache import CacheShape, KVCache
from graftwork.server.engine.lora.bank import LoraTable
from graftwork.server.engine.lora.host_adapter import RANK_PAGE, LinearGraft
from graftwork.server.engine.lora.plan import AdapterRun, LoraPlan

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
DTYPES = [torch.float32, torch.bfloat16]

pytestmark = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(), reason="neither a CUDA device nor TRITON_INTERPRET=1"
)


# --- adapters ---------------------------------------------------------------------------------------------------------


def make_graft(rank: int, num_inputs: int, num_outputs: int, dtype: torch.dtype) -> LinearGraft:
    num_pages = -(-rank // RANK_PAGE)
    a = torch.zeros(num_pages * RANK_PAGE, num_inputs)
    b = torch.zeros(num_pages * RANK_PAGE, num_outputs)
    a[:rank], b[:rank] = torch.randn(rank, num_inputs) / num_inputs**0.5, torch.randn(rank, num_outputs)
    shape = (num_pages, RANK_PAGE, -1)
    return LinearGraft(a=a.view(shape).to(dtype), b=b.view(shape).to(dtype), magnitude=None, bias=None)


class Mix:
    """Adapters of several ranks in one table, each on some of the members, and a step's runs over them."""

    def __init__(self, seed: int, widths: Sequence[int], num_inputs: int, counts: Sequence[int], dtype: torch.dtype):
        torch.manual_seed(seed)
        rng = random.Random(seed)
        ends = [sum(widths[: i + 1]) for i in range(len(widths))]
        self.slices = [slice(end - width, end) for end, width in zip(ends, widths, strict=True)]
        self.num_inputs, self.dtype = num_inputs, dtype
        self.pages: list[tuple[int, ...]] = []
        self.grafts: list[dict[int, LinearGraft]] = []
        free = list(range(4 * len(counts) + 3))
        rng.shuffle(free)
        self.num_pages = len(free)
        self.runs: list[AdapterRun] = []
        token = rng.choice([0, 1, 3, 17])  # tokens of the bare base come first
        for index, count in enumerate(counts):
            ranks = {m: rng.randint(1, 64) for m in range(len(widths)) if rng.random() < 0.75}
            most = max((-(-rank // RANK_PAGE) for rank in ranks.values()), default=1)
            self.pages.append(tuple(free.pop() for _ in range(most)))
            self.grafts.append({m: make_graft(rank, num_inputs, widths[m], dtype) for m, rank in ranks.items()})
            self.runs.append(AdapterRun(token, token + count, f"adapter {index}", self.pages[-1]))
            token += count
        self.num_tokens = token + rng.choice([0, 2])  # rows that nobody's run covers stay as they are
        self.x = torch.randn(max(1, self.num_tokens), num_inputs).to(dtype)
        self.y = torch.randn(max(1, self.num_tokens), ends[-1]).to(dtype)

    def table(self) -> SegmentedTable:
        table = SegmentedTable(**self.shape(DEVICE))
        for pages, grafts in zip(self.pages, self.grafts, strict=True):
            table.write(pages, table.pack(grafts) if grafts else None)
        return table

    def shape(self, device: torch.device) -> dict[str, Any]:
        return {
            "num_pages": self.num_pages,
            "num_inputs": self.num_inputs,
            "slices": self.slices,
            "dtype": self.dtype,
            "device": device,
        }

    def expected(self) -> Tensor:
        y = self.y.double()
        for run, grafts in zip(self.runs, self.grafts, strict=True):
            for member, graft in grafts.items():
                h = self.x[run.start : run.stop].double() @ graft.a.flatten(0, 1).double().t()
                y[run.start : run.stop, self.slices[member]] += h @ graft.b.flatten(0, 1).double()
        return y


def worst(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, as a part of the largest value."""
    return float((actual.double().cpu() - expected).abs().max() / expected.abs().max())


def tolerance(dtype: torch.dtype) -> float:
    return 2e-6 if dtype == torch.float32 else 1.2e-2


def check_mix(mix: Mix) -> None:
    x, y = mix.x.to(DEVICE), mix.y.to(DEVICE, copy=True)
    table = mix.table()
    table.add(plan_for(mix.runs, DEVICE), x, y)
    assert worst(y, mix.expected()) < tolerance(mix.dtype)
    untouched = torch.ones(len(y), dtype=torch.bool)
    for run in mix.runs:
        untouched[run.start : run.stop] = False
    assert torch.equal(y.cpu()[untouched], mix.y[untouched])


@settings(max_examples=10)
@given(
    seed=st.integers(0, 10**6),
    widths=st.lists(st.sampled_from([16, 40, 96, 130, 7]), min_size=1, max_size=3),
    num_inputs=st.sampled_from([48, 130, 600]),
    counts=st.lists(st.sampled_from([0, 1, 1, 1, 2, 15, 16, 17, 33, 70]), min_size=1, max_size=5),
    dtype=st.sampled_from(DTYPES),
)
def test_any_mix_of_adapters(
    seed: int, widths: list[int], num_inputs: int, counts: list[int], dtype: torch.dtype
) -> None:
    check_mix(Mix(seed, widths, num_inputs, counts, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_rows_each_with_another_adapter(dtype: torch.dtype) -> None:
    check_mix(Mix(1, [256, 64, 64], 1100, [1] * 7, dtype))


def test_the_plain_path_says_the_same() -> None:
    mix = Mix(2, [64, 32, 32], 96, [1, 3, 40, 2, 1], torch.float32)
    y, plain = mix.y.to(DEVICE, copy=True), mix.y.clone()
    mix.table().add(plan_for(mix.runs, DEVICE), mix.x.to(DEVICE), y)
    table = LoraTable(**mix.shape(torch.device("cpu")))
    for pages, grafts in zip(mix.pages, mix.grafts, strict=True):
        table.write(pages, grafts)
    table.add(LoraPlan(mix.runs, torch.device("cpu")), mix.x, plain)
    assert worst(y, plain.double()) < 2e-6


def test_a_row_is_the_same_whatever_its_neighbours() -> None:
    """Bit by bit: as one row of a decoding step, and in the middle of a prompt's tile."""
    mix = Mix(3, [64, 32], 600, [40, 1, 1], torch.float32)
    table = mix.table()
    together = mix.y.to(DEVICE, copy=True)
    table.add(plan_for(mix.runs, DEVICE), mix.x.to(DEVICE), together)
    for run in mix.runs:
        token = run.stop - 1
        alone = mix.y.to(DEVICE, copy=True)
        runs = [AdapterRun(token, token + 1, run.digest, run.pages)]
        table.add(plan_for(runs, DEVICE), mix.x.to(DEVICE), alone)
        if INTERPRETED:  # numpy sums in an order of its own
            assert torch.allclose(alone[token], together[token], rtol=0, atol=1e-5)
        else:
            assert torch.equal(alone[token], together[token])


def test_a_page_changes_hands() -> None:
    """What the last adapter left on a page that the next one touches in part is never seen, be it NaN."""
    mix = Mix(4, [32, 16], 48, [3], torch.float32)
    table = mix.table()
    poison = LinearGraft(
        a=torch.full((1, RANK_PAGE, 48), float("nan")),
        b=torch.full((1, RANK_PAGE, 32), float("nan")),
        magnitude=None,
        bias=None,
    )
    page = mix.pages[0][0]
    table.write([page], table.pack({0: poison}))
    mix.grafts = [{1: make_graft(5, 48, 16, torch.float32)}]
    mix.runs = [AdapterRun(0, 3, "next", (page,))]
    table.write([page], table.pack(mix.grafts[0]))
    y = mix.y.to(DEVICE, copy=True)
    table.add(plan_for(mix.runs, DEVICE), mix.x.to(DEVICE), y)
    assert worst(y, mix.expected()) < 2e-6


def test_a_launch_for_many_tiles_serves_few_and_many() -> None:
    """What a captured graph does: the same launch, refilled; more adapters than it was captured with, then fewer."""
    mix = Mix(5, [32, 16], 48, [1] * 8, torch.float32)
    table, num_rows = mix.table(), 8 * 4
    mailbox = staging.StaticInputs({"tiles": 8 * 5, "pages": mix.num_pages}, DEVICE)
    launch = SegmentedPlan([], [DeviceTiles(16, 8, num_rows, mailbox["tiles"], mailbox["pages"])], for_graph=True)
    for count in (1, 8, 3, 0):
        runs = mix.runs[:count]
        cut = tiles.tile_short_runs(runs)
        mailbox.fill({"tiles": cut.tiles, "pages": cut.pages})
        y = mix.y.to(DEVICE, copy=True)
        table.add(launch, mix.x.to(DEVICE), y)
        expected = mix.expected()
        last = runs[-1].stop if runs else 0
        expected[last:] = mix.y[last:].double()
        assert worst(y, expected) < 2e-6


# --- attention --------------------------------------------------------------------------------------------------------


class Scene:
    """Sequences in slots of a cache, some of which decode and some of which get a chunk of their prompt."""

    def __init__(self, seed: int, heads: tuple[int, int, int], spans: Sequence[tuple[int, int]], dtype: torch.dtype):
        """``heads`` = (query heads, key-value heads, dim); each span is (tokens in the cache, tokens to come)."""
        torch.manual_seed(seed)
        self.num_heads, self.kv_heads, self.dim = heads
        self.spans = list(spans)
        longest = max(before + count for before, count in spans)
        shape = CacheShape(
            num_slots=len(spans) + 2,
            slot_length=longest + 3,
            kv_sizes=((self.kv_heads, self.dim),),
            dtype=dtype,
            device=DEVICE,
        )
        self.cache = KVCache(shape)
        self.slots = random.Random(seed).sample(range(shape.num_slots), len(spans))
        width = self.kv_heads * self.dim
        self.keys = [torch.randn(before + count, width).to(dtype) for before, count in spans]
        self.values = [torch.randn(before + count, width).to(dtype) for before, count in spans]
        for tensor in (self.cache.keys[0], self.cache.values[0]):
            tensor.fill_(float("nan"))  # what nobody wrote must not be seen
        for slot, (before, _), keys, values in zip(self.slots, spans, self.keys, self.values, strict=True):
            self.cache.keys[0][slot, :before] = keys[:before].to(DEVICE)
            self.cache.values[0][slot, :before] = values[:before].to(DEVICE)
        self.num_tokens = sum(count for _, count in spans)
        self.query = torch.randn(self.num_heads, self.num_tokens, self.dim).to(dtype)

    def new(self, held: list[Tensor]) -> Tensor:
        """The keys or values of the step's tokens, [K, T, D]."""
        rows = torch.cat([tensor[before:] for tensor, (before, _) in zip(held, self.spans, strict=True)])
        return rows.view(-1, self.kv_heads, self.dim).transpose(0, 1).contiguous()

    def attend(self, scale: float, window: int | None, softcap: float | None) -> Tensor:
        spans = [(slot, before, count) for slot, (before, count) in zip(self.slots, self.spans, strict=True)]
        plan = slot_attention.plan_for(self.cache, spans)
        query, key, value = (t.to(DEVICE) for t in (self.query, self.new(self.keys), self.new(self.values)))
        return plan.attend(0, query, key, value, scale, window, softcap)

    def expected(self, scale: float, window: int | None, softcap: float | None) -> Tensor:
        out = []
        token = 0
        for (before, count), keys, values in zip(self.spans, self.keys, self.values, strict=True):
            k, v = (
                t.double().view(-1, self.kv_heads, self.dim).repeat_interleave(self.num_heads // self.kv_heads, 1)
                for t in (keys, values)
            )
            for position in range(before, before + count):
                first = 0 if window is None else max(0, position - window + 1)
                scores = torch.einsum("hd,lhd->hl", self.query[:, token].double(), k[first : position + 1]) * scale
                if softcap is not None:
                    scores = torch.tanh(scores / softcap) * softcap
                out.append(torch.einsum("hl,lhd->hd", torch.softmax(scores, -1), v[first : position + 1]))
                token += 1
        return torch.stack(out)


LOOKS: list[tuple[int | None, float | None]] = [(None, None), (20, None), (None, 5.0), (37, 3.0)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "look"), [((4, 2, 16), LOOKS[0]), ((4, 2, 16), LOOKS[3]), ((3, 1, 24), LOOKS[1]), ((8, 8, 80), LOOKS[2])]
)
def test_attention_of_a_mixed_step(
    heads: tuple[int, int, int], look: tuple[int | None, float | None], dtype: torch.dtype
) -> None:
    window, softcap = look
    scene = Scene(7, heads, [(5, 1), (0, 1), (130, 1), (0, 70), (40, 21), (19, 1)], dtype)
    scale = heads[2] ** -0.5
    actual = scene.attend(scale, window, softcap)
    assert worst(actual, scene.expected(scale, window, softcap)) < (2e-6 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("window", [None, 300])
def test_attention_over_several_pieces(window: int | None) -> None:
    scene = Scene(8, (4, 2, 32), [(899, 1), (256, 1), (255, 1), (3, 1), (511, 1)], torch.float32)
    assert slot_attention.pieces(903, 64) == (256, 4)
    actual = scene.attend(0.2, window, None)
    assert worst(actual, scene.expected(0.2, window, None)) < 2e-6


def test_strided_queries_keys_and_values() -> None:
    """As HF's modules make them: transposed views of rows."""
    scene = Scene(9, (4, 2, 16), [(5, 1), (0, 9)], torch.float32)
    scene.query = scene.query.transpose(0, 1).contiguous().transpose(0, 1)
    assert worst(scene.attend(0.25, None, None), scene.expected(0.25, None, None)) < 2e-6


# --- the trial at the start -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_trial_at_the_start_lets_good_kernels_pass(dtype: torch.dtype) -> None:
    assert find_obstacle(DEVICE, dtype) is None


class Instead:
    """Stands where a kernel stands."""

    def __init__(self, does: Exception | None) -> None:
        self.does = does

    def __getitem__(self, grid: object) -> Callable[..., None]:
        def launch(*args: object, **kwargs: object) -> None:
            if self.does is not None:
                raise self.does

        return launch


def test_the_trial_at_the_start_catches_what_does_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_kernels, "shrink", Instead(RuntimeError("Failed to find C compiler.\nMore")))
    assert (
        find_obstacle(DEVICE, torch.float32) == f"Triton's kernels do not run on {DEVICE}: Failed to find C compiler."
    )


def test_the_trial_at_the_start_catches_wrong_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_kernels, "expand", Instead(None))
    assert "kernels for adapters are" in (find_obstacle(DEVICE, torch.float32) or "")
    monkeypatch.undo()
    monkeypatch.setattr(attention_kernels, "write_slots", Instead(None))
    assert "kernels for attention are" in (find_obstacle(DEVICE, torch.float32) or "")
