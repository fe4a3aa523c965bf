"""Computes a step on a GPU, through HF's own modules and our kernels.

``TritonForward`` launches kernel by kernel and computes any batch. ``CudaGraphForward`` replays captured graphs for
steps in which every row decodes, and passes the others on.

Shapes: T tokens in one packed row, R of them that reach the head, V vocabulary, S whose hidden states are wanted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from graftwork.adapters.errors import ConfigurationError
from graftwork.server.engine.backends.cuda.graphs import GraphRecorder
from graftwork.server.engine.backends.cuda.lora import DeviceTiles, SegmentedPlan
from graftwork.server.engine.backends.cuda.slot_attention import SlotAttention
from graftwork.server.engine.backends.cuda.staging import StaticInputs, upload, use_device
from graftwork.server.engine.backends.cuda.tiles import (
    LONG_TILE,
    SHORT_TILE,
    RunTiles,
    tile_chunks,
    tile_runs,
    tile_short_runs,
)
from graftwork.server.engine.batch import Batch, ForwardOutput
from graftwork.server.engine.kv.cache import KVCache
from graftwork.server.engine.lora.bank import LoraBank
from graftwork.server.engine.lora.plan import AdapterRun
from graftwork.server.engine.model.causal_lm import CausalLM

log = logging.getLogger(__name__)

#: Pages of the largest adapter that graphs have room for: rank 256.
MAX_PAGES = 16


class TritonForward:
    """A ``Forward`` through HF's modules, whose linear layers are ``TritonLinear``s.

    Args:
        model: HF's model, with its layers replaced by ``graft_onto``.
        bank: The adapters on the device; its ``plan`` is set during a call.
        cache: On the same device.
    """

    def __init__(self, model: nn.Module, bank: LoraBank, cache: KVCache) -> None:
        self.model = model
        self._causal_lm = CausalLM(model)
        self.bank = bank
        self.cache = cache
        self.device = cache.shape.device

    def __call__(self, rows: Batch) -> ForwardOutput:
        body, head = tile_runs(rows.runs), tile_runs(rows.head_runs())
        lists: dict[str, Sequence[int]] = {
            "tokens": rows.tokens,
            "positions": rows.positions,
            "slots": rows.slots,
            "decoding": [row.token for row in rows.decoding],
            "chunks": tile_chunks([(chunk.token, chunk.token + chunk.count) for chunk in rows.chunks]),
            "kept": rows.logits_indices,
            "hidden": rows.hidden_indices,
        }
        for place, cuts in (("body", body), ("head", head)):
            for index, tiles in enumerate(cuts):
                lists[f"{place} tiles {index}"], lists[f"{place} pages {index}"] = tiles.tiles, tiles.pages
        there = upload(lists, self.device)

        def plan(place: str, runs: Sequence[AdapterRun], cuts: Sequence[RunTiles]) -> SegmentedPlan | None:
            kinds = [
                DeviceTiles(t.size, t.num_tiles, t.num_rows, there[f"{place} tiles {i}"], there[f"{place} pages {i}"])
                for i, t in enumerate(cuts)
            ]
            return SegmentedPlan(runs, kinds) if runs else None

        attention = SlotAttention(
            cache=self.cache,
            positions=there["positions"],
            slots=there["slots"],
            rows=there["decoding"],
            tiles=there["chunks"].view(-1, 2),
        )
        plans = plan("body", rows.runs, body), plan("head", rows.head_runs(), head)
        return self.compute(there["tokens"], attention, *plans, there["kept"], there["hidden"])

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Compile every kernel that a step may need. What this writes to the cache belongs to no sequence.

        Raises:
            ConfigurationError: The kernels cannot be compiled for this base's sizes.
        """
        num_tokens = min(LONG_TILE, self.cache.shape.slot_length)
        last = num_tokens - 1
        lists = {"tokens": [0] * num_tokens, "slots": [0] * num_tokens, "nothing": [0] * 5}  # a tile without tokens
        lists |= {"positions": list(range(num_tokens)), "rows": [last], "chunk": [0, last]}
        there = upload(lists, self.device)
        kinds = [DeviceTiles(size, 1, 1, there["nothing"], there["nothing"]) for size in (SHORT_TILE, LONG_TILE)]
        plan = SegmentedPlan([], kinds, for_graph=True)
        attention = SlotAttention(
            self.cache, there["positions"], there["slots"], there["rows"], there["chunk"].view(-1, 2)
        )
        try:
            self.compute(there["tokens"], attention, plan, plan, there["positions"])
        except Exception as failure:
            raise ConfigurationError(
                f"Triton's kernels cannot be used with this base: {failure}. Choose --kernels torch."
            ) from failure

    def compute(
        self,
        tokens: Tensor,
        attention: SlotAttention,
        plan: SegmentedPlan | None,
        head_plan: SegmentedPlan | None,
        kept: Tensor | None,
        hidden: Tensor | None = None,
    ) -> ForwardOutput:
        """Run the model on tensors that are on the device already.

        Args:
            tokens: [T] token ids.
            attention: Positions, slots and the cut of the step.
            plan: The adapters of all layers but the head; ``None`` without any.
            head_plan: Those of the rows that reach the head.
            kept: [R] tokens whose logits are computed; ``None``: all.
            hidden: [S] tokens whose hidden states are returned.
        """
        self.bank.plan, self.bank.head_plan = plan, head_plan
        try:
            with use_device(self.device):
                return self._causal_lm(tokens, attention.positions, attention, logits_at=kept, hidden_at=hidden)
        finally:
            self.bank.plan = self.bank.head_plan = None


@dataclass(frozen=True, slots=True)
class CapturedGraph:
    """A captured step: ``replay`` computes it again and writes to ``logits`` [rows, V]."""

    logits: Tensor
    replay: Callable[[], None]


class CudaGraphForward:
    """A ``Forward`` that replays graphs, captured for some numbers of rows.

    A step takes the smallest graph that holds it and repeats its last row. Graphs cannot compute what depends on which
    adapters are in the batch (DoRA, biases, replaced modules): the runner sends those rows elsewhere. Steps with an
    adapter on the head are launched kernel by kernel, so that other steps need not look for one.

    Args:
        forward: Is captured, and computes the steps that no graph can.
        recorder: Captures.
        max_rows: The most rows of a captured step.
    """

    def __init__(self, forward: TritonForward, recorder: GraphRecorder, *, max_rows: int) -> None:
        self.num_replayed = 0
        self._forward = forward
        self._recorder = recorder
        self._sizes = graph_sizes(max_rows)
        self._graphs: dict[tuple[int, bool], CapturedGraph] = {}
        self._inputs = StaticInputs(
            {
                "tokens": max_rows,
                "positions": max_rows,
                "slots": max_rows,
                "tiles": max_rows * 5,
                "pages": forward.bank.num_pages,
            },
            forward.device,
        )
        self._all_rows = torch.arange(max_rows, device=forward.device)
        head = forward.model.get_output_embeddings()  # type: ignore[operator]
        self._head_names = {name for name, module in forward.model.named_modules() if module is head}

    @torch.inference_mode()
    def capture(self) -> None:
        """Capture all graphs, before the first step. What this writes to the cache belongs to no sequence."""
        began = time.perf_counter()
        self._inputs.fill({})
        with use_device(self._forward.device):
            for size in reversed(self._sizes):  # the largest first: the others find room in its memory
                for grafted in (False, True):
                    self._graphs[size, grafted] = self._record(size, grafted)
        log.info("captured %d graphs in %.1f s", len(self._graphs), time.perf_counter() - began)

    def __call__(self, rows: Batch) -> ForwardOutput:
        logits = self._replay(rows)
        return self._forward(rows) if logits is None else ForwardOutput(logits)

    def _replay(self, rows: Batch) -> Tensor | None:
        """Logits [rows, V], or ``None`` when no graph can compute this step."""
        num_rows = len(rows.tokens)
        size = smallest_fitting(self._sizes, num_rows) if rows.is_decode else None
        if size is None or any(self._touches_head(run.digest) for run in rows.runs):
            return None
        padded = rows.padded(size)
        tiles = tile_short_runs(padded.runs)
        if tiles.num_rows > self._num_h_rows(size):
            return None
        recorded = self._graphs[size, bool(rows.runs)]
        self._inputs.fill(
            {
                "tokens": padded.tokens,
                "positions": padded.positions,
                "slots": padded.slots,
                "tiles": tiles.tiles,
                "pages": tiles.pages,
            }
        )
        with use_device(self._forward.device):
            recorded.replay()
        self.num_replayed += 1
        return recorded.logits[:num_rows]

    def _record(self, size: int, grafted: bool) -> CapturedGraph:
        inputs = self._inputs
        tiles = DeviceTiles(SHORT_TILE, size, self._num_h_rows(size), inputs["tiles"], inputs["pages"])
        plan = SegmentedPlan([], [tiles], for_graph=True) if grafted else None
        attention = SlotAttention(
            cache=self._forward.cache,
            positions=inputs["positions"][:size],
            slots=inputs["slots"][:size],
            rows=self._all_rows[:size],
            tiles=self._all_rows[:0],
        )
        tokens = inputs["tokens"][:size]
        return CapturedGraph(
            *self._recorder.record(lambda: self._forward.compute(tokens, attention, plan, None, None).logits)
        )

    def _num_h_rows(self, size: int) -> int:
        return size * min(MAX_PAGES, self._forward.bank.num_pages)

    def _touches_head(self, digest: str) -> bool:
        return bool(self._head_names & self._forward.bank.host_adapters[digest].names)


def capture_graphs(forward: TritonForward, recorder: GraphRecorder, *, max_rows: int) -> CudaGraphForward | None:
    """Capture graphs for up to ``max_rows`` rows.

    Returns:
        ``None`` where this base cannot be captured; the log says why.
    """
    graphs = CudaGraphForward(forward, recorder, max_rows=max_rows)
    try:
        graphs.capture()
    except Exception:
        log.exception("decoding steps of this base cannot be captured: they are launched kernel by kernel, slower")
        return None
    return graphs


def graph_sizes(max_rows: int) -> list[int]:
    """The numbers of rows that graphs are captured for: powers of two below ``max_rows``, and ``max_rows``."""
    return [*(1 << i for i in range((max_rows - 1).bit_length())), max_rows]


def smallest_fitting(sizes: Sequence[int], num_rows: int) -> int | None:
    """The smallest of ``sizes`` that holds ``num_rows``, or ``None``."""
    return min((size for size in sizes if size >= num_rows), default=None)
