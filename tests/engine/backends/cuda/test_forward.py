"""Tiling and padding of steps for a GPU, and when a captured graph is used. Runs without a GPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

pytest.importorskip("triton", reason="Triton is for Linux")

from graftwork.adapters.errors import ConfigurationError
from graftwork.server.engine import backend_selector, loading
from graftwork.server.engine.backends.cuda import self_test, tiles
from graftwork.server.engine.backends.cuda.forward import (
    CudaGraphForward,
    TritonForward,
    capture_graphs,
    graph_sizes,
    smallest_fitting,
)
from graftwork.server.engine.backends.cuda.staging import StaticInputs, upload
from graftwork.server.engine.batch import Batch, DecodeRow, ForwardOutput, PrefillChunk
from graftwork.server.engine.config import EngineConfig
from graftwork.server.engine.lora.plan import AdapterRun
from graftwork.server.engine.model import numerics as numerics_module

CPU = torch.device("cpu")

# --- tiles ------------------------------------------------------------------------------------------------------------

LENGTHS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 150), st.integers(1, 5)), max_size=8)


def runs_of(lengths: list[tuple[int, int, int]]) -> list[AdapterRun]:
    """(tokens of the bare base before, tokens, pages) of each run."""
    runs, token, page = [], 0, 0
    for before, count, num_pages in lengths:
        token += before
        runs.append(AdapterRun(token, token + count, f"adapter {page}", tuple(range(page, page + num_pages))))
        token, page = token + count, page + num_pages
    return runs


@given(LENGTHS)
def test_tiles_cover_every_token_of_every_run_once(lengths: list[tuple[int, int, int]]) -> None:
    runs = runs_of(lengths)
    whose: dict[int, tuple[int, ...]] = {}
    for kind in tiles.tile_runs(runs):
        places: set[int] = set()
        for start, stop, first_page, num_pages, h_row in zip(*[iter(kind.tiles)] * 5, strict=True):
            assert 0 < stop - start <= kind.size
            rows = range(h_row, h_row + (stop - start) * num_pages)
            assert not places & set(rows)  # no two tiles share a row of h
            places |= set(rows)
            for token in range(start, stop):
                assert token not in whose
                whose[token] = tuple(kind.pages[first_page : first_page + num_pages])
        assert places == set(range(kind.num_rows))
    assert whose == {token: run.pages for run in runs for token in range(run.start, run.stop)}


def test_long_runs_get_long_tiles() -> None:
    short, long = tiles.tile_runs([AdapterRun(0, 31, "a", (0,)), AdapterRun(31, 63, "b", (1,))])
    assert (short.size, short.num_tiles, long.size, long.num_tiles) == (16, 2, 64, 1)
    assert tiles.tile_short_runs([AdapterRun(0, 33, "a", (0,))]).num_tiles == 3
    assert tiles.tile_runs([]) == []


@given(st.lists(st.integers(1, 200), max_size=5))
def test_tiles_of_attention_hold_tokens_of_one_chunk(counts: list[int]) -> None:
    ends = [sum(counts[: i + 1]) for i in range(len(counts))]
    chunks = [(end - count, end) for end, count in zip(ends, counts, strict=True)]
    flat = tiles.tile_chunks(chunks)
    covered = [token for start, stop in zip(flat[::2], flat[1::2], strict=True) for token in range(start, stop)]
    assert covered == list(range(sum(counts)))
    for start, stop in zip(flat[::2], flat[1::2], strict=True):
        assert any(first <= start < stop <= last for first, last in chunks)


# --- staging ----------------------------------------------------------------------------------------------------------


def test_lists_arrive_as_they_left() -> None:
    lists = {"tokens": [5, 6], "none": [], "pages": [1 << 40]}
    there = upload(lists, CPU)
    assert {name: tensor.tolist() for name, tensor in there.items()} == lists


def test_lists_begin_where_triton_likes_it() -> None:
    """A pointer that is no multiple of 16 bytes is another kernel: it would be compiled while a request waits."""
    sizes = {"a": 3, "b": 5, "c": 2, "d": 1}
    uploaded = upload({name: [7] * size for name, size in sizes.items()}, CPU)
    mailbox = StaticInputs(sizes, CPU)
    for name in sizes:
        assert uploaded[name].data_ptr() % 16 == mailbox[name].data_ptr() % 16 == 0


def test_a_mailbox_keeps_its_places_and_forgets_what_was_there() -> None:
    mailbox = StaticInputs({"a": 3, "b": 2}, CPU)
    a, b = mailbox["a"], mailbox["b"]
    mailbox.fill({"a": [1, 2, 3], "b": [4]})
    assert (a.tolist(), b.tolist()) == ([1, 2, 3], [4, 0])
    mailbox.fill({"a": [9]})
    assert (a.tolist(), b.tolist()) == ([9, 0, 0], [0, 0])
    for wrong in ({"a": [1] * 4}, {"c": [1]}):
        with pytest.raises(ValueError, match="no room"):
            mailbox.fill(wrong)


# --- which kernels ----------------------------------------------------------------------------------------------------


@pytest.fixture
def a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


def choose(kernels: str, device: str = "cuda", quantize: str = "none") -> numerics_module.Numerics:
    return backend_selector.choose(
        quantize=quantize, dtype="auto", device=device, kernels=kernels, num_parameters=10**9
    )


def test_a_card_gets_tritons_kernels(a_card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose("auto").kernels == choose("triton", quantize="nf4").kernels == "triton"
    assert (choose("torch").kernels, choose("torch").reason) == ("torch", "as asked; torch kernels, as asked")
    with pytest.raises(ConfigurationError, match="native is for CPUs; on CUDA choose triton"):
        choose("native")
    with pytest.raises(ConfigurationError, match="triton is for CUDA"):
        choose("triton", device="cpu")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert (choose("auto").kernels, choose("auto").reason) == (
        "torch",
        "as asked; torch kernels, Triton is not installed",
    )
    with pytest.raises(ConfigurationError, match="pip install triton"):
        choose("triton")


def test_kernels_that_do_not_run_are_no_failed_start(
    a_card: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(self_test, "find_obstacle", lambda device, dtype: "Triton's kernels do not run: no C compiler")
    assert loading._can_use_triton(EngineConfig(), choose("auto")) == (False, "torch kernels, Triton's do not run here")
    assert "no C compiler. Going on with torch's kernels" in caplog.text
    with pytest.raises(ConfigurationError, match=r"--kernels triton: .* no C compiler"):
        loading._can_use_triton(EngineConfig(kernels="triton"), choose("triton"))
    monkeypatch.setattr(self_test, "find_obstacle", lambda device, dtype: None)
    assert loading._can_use_triton(EngineConfig(), choose("auto")) == (True, "")


# --- which steps are graphs -------------------------------------------------------------------------------------------


def test_sizes_of_graphs_cover_every_step() -> None:
    assert graph_sizes(32) == [1, 2, 4, 8, 16, 32]
    assert graph_sizes(24) == [1, 2, 4, 8, 16, 24]
    for most in range(1, 70):
        sizes = graph_sizes(most)
        assert len(set(sizes)) == len(sizes)
        assert all(rows <= (smallest_fitting(sizes, rows) or 0) < 2 * rows for rows in range(1, most + 1))
        assert smallest_fitting(sizes, most + 1) is None


def decoding(num_rows: int, runs: list[AdapterRun] | None = None) -> Batch:
    return Batch(
        tokens=[100 + i for i in range(num_rows)],
        positions=[10 + i for i in range(num_rows)],
        slots=list(range(num_rows)),
        logits_indices=list(range(num_rows)),
        decoding=[DecodeRow(i, i, 11 + i) for i in range(num_rows)],
        runs=runs or [],
    )


def test_padding_repeats_the_last_row_and_its_adapter() -> None:
    padded = decoding(3, [AdapterRun(1, 3, "a", (4,))]).padded(4)
    assert (padded.tokens, padded.positions, padded.slots) == ([100, 101, 102, 102], [10, 11, 12, 12], [0, 1, 2, 2])
    assert padded.runs == [AdapterRun(1, 4, "a", (4,))]
    assert decoding(2, [AdapterRun(0, 1, "a", (4,))]).padded(4).runs == [AdapterRun(0, 1, "a", (4,))]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lm_head = nn.Linear(2, 2)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def get_decoder(self) -> nn.Module:
        return nn.Identity()


class Forward(TritonForward):
    """Logits that tell which token stands where; ``calls`` are the steps launched kernel by kernel."""

    def __init__(self, adapters: dict[str, set[str]]) -> None:
        linears = {digest: SimpleNamespace(names=frozenset(names)) for digest, names in adapters.items()}
        bank: Any = SimpleNamespace(num_pages=8, host_adapters=linears, plan=None, head_plan=None)
        super().__init__(Model(), bank, SimpleNamespace(shape=SimpleNamespace(device=CPU)))  # type: ignore[arg-type]
        self.calls: list[Batch] = []

    def __call__(self, rows: Batch) -> ForwardOutput:
        self.calls.append(rows)
        return ForwardOutput(torch.tensor([rows.tokens]).T)

    def compute(
        self,
        tokens: Tensor,
        attention: Any,
        plan: Any,
        head_plan: Any,
        kept: Tensor | None,
        hidden: Tensor | None = None,
    ) -> ForwardOutput:
        assert head_plan is None
        assert kept is None
        assert hidden is None
        columns = [tokens, attention.positions, attention.slots, attention.rows]
        if plan is not None:
            (kind,) = plan.kinds
            assert plan.for_graph
            assert kind.num_tiles == len(tokens)
            columns.append(kind.tiles[: 5 * len(tokens)].view(-1, 5)[:, 3])
        return ForwardOutput(torch.stack(columns, 1))


class Replayer:
    """What a graph does: the same computation again, into the same tensor."""

    def record(self, compute: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        result = compute()

        @torch.inference_mode()
        def replay() -> None:
            result.copy_(compute())

        return result, replay


@pytest.fixture
def forward() -> Forward:
    return Forward({"a": {"layers.0.q_proj"}, "b": {"layers.0.q_proj"}, "head": {"lm_head"}})


@pytest.fixture
def graphs(forward: Forward) -> CudaGraphForward:
    built = capture_graphs(forward, Replayer(), max_rows=6)
    assert built is not None
    return built


def test_decoding_steps_are_replayed(graphs: CudaGraphForward, forward: Forward) -> None:
    logits = graphs(decoding(3)).logits
    assert logits.tolist() == [[100, 10, 0, 0], [101, 11, 1, 1], [102, 12, 2, 2]]
    with_adapters = graphs(decoding(5, [AdapterRun(1, 2, "a", (3,)), AdapterRun(2, 5, "b", (0, 1))])).logits
    assert with_adapters[:, :3].tolist() == [[100 + i, 10 + i, i] for i in range(5)]
    assert with_adapters[:, 4].tolist() == [1, 2, 0, 0, 0]  # a tile of one page, one of two, and none
    assert not forward.calls
    assert graphs.num_replayed == 2


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(decoding(7), id="more rows than any graph"),
        pytest.param(decoding(2, [AdapterRun(0, 1, "head", (1,))]), id="an adapter on the head"),
        pytest.param(decoding(2, [AdapterRun(0, 2, "a", tuple(range(20)))]), id="a rank without room"),
        pytest.param(Batch(tokens=[1, 2], logits_indices=[1], chunks=[PrefillChunk(0, 2, 0, 0)]), id="a prompt"),
        pytest.param(Batch(tokens=[1], decoding=[DecodeRow(0, 0, 4)]), id="logits nobody wants"),
    ],
)
def test_other_steps_are_launched(graphs: CudaGraphForward, forward: Forward, rows: Batch) -> None:
    graphs(rows)
    assert forward.calls == [rows]
    assert graphs.num_replayed == 0


def test_a_base_that_cannot_be_captured_is_no_failed_start(forward: Forward, caplog: pytest.LogCaptureFixture) -> None:
    class Refuses:
        def record(self, compute: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
            raise RuntimeError("operation not permitted when stream is capturing")

    assert capture_graphs(forward, Refuses(), max_rows=4) is None
    assert "operation not permitted when stream is capturing" in caplog.text
