"""Where a decoding step's time goes, in process: no HTTP, no clients, nobody else on the cores.

    python -m benchmarks.engine.steps --base HOME/base/smollm2-135m-instruct --out DIR

For each number of rows and adapters the median step, and how much of it was spent in which kernel; beside it the time
that reading the weights once, and nothing else, would take here. Only native kernels can be told apart.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.harness.adapter_folders import AdapterFolders, named
from benchmarks.harness.output import markdown_row
from graftwork.adapters.base import BaseInfo, prepare
from graftwork.adapters.peft_format.folder import read_spec
from graftwork.adapters.peft_format.limits import AdapterLimits
from graftwork.adapters.peft_format.spec import AdapterSpec
from graftwork.server.engine.backends.cpu.context import KernelContext
from graftwork.server.engine.backends.cpu.forward import CpuForward
from graftwork.server.engine.backends.cpu.interface import ADD_NORM, ATTEND, OpFields, StepFields
from graftwork.server.engine.backends.cpu.linear import CpuLinear
from graftwork.server.engine.config import EngineConfig
from graftwork.server.engine.engine import Engine
from graftwork.server.engine.loading import build
from graftwork.server.engine.lora import host_adapter
from graftwork.server.engine.request import Request, SamplingParams

PROMPT_TOKENS = 110
SKIPPED_STEPS = 8


class Stopwatch:
    """A kernel context that runs kernels one by one and adds up the time of each kind.

    Args:
        context: the context that runs them.

    Attributes:
        seconds: time by kind of kernel, in seconds.
    """

    def __init__(self, context: KernelContext) -> None:
        self._context = context
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def run(self, ops: ctypes.Array[OpFields], step: StepFields) -> None:
        """Run the kernels of a step one by one."""
        for op in ops:
            began = time.perf_counter()
            self._context.run((OpFields * 1)(op), step)
            self.seconds[_kind(op)] += time.perf_counter() - began


def _kind(op: OpFields) -> str:
    if op.kind == ATTEND:
        return "attention"
    if op.kind == ADD_NORM:
        return "norms"
    return f"{op.linear.contents.num_inputs} → {op.y_width}"


@contextmanager
def watched(decoder: CpuForward) -> Iterator[Stopwatch]:
    """Measure the kernels of a forward pass during the block."""
    context = decoder.context
    stopwatch = Stopwatch(context)
    decoder.context = stopwatch  # type: ignore[assignment]
    try:
        yield stopwatch
    finally:
        decoder.context = context


class Steps:
    """Measures the decoding steps of an engine in this process."""

    def __init__(self, info: BaseInfo, specs: dict[str, tuple[Path, AdapterSpec]], config: EngineConfig) -> None:
        runner, limits, self.card = build(info, config)
        if not isinstance(runner.fast_path, CpuForward):
            raise SystemExit(f"no native kernels here ({self.card.reason}): there is nothing to tell apart")
        self._decoder = runner.fast_path
        linears = {id(p.linear): p.linear for p in runner.grafts.merged_linears if isinstance(p.linear, CpuLinear)}
        self.weight_bytes = sum(linear.panels.nbytes for linear in linears.values())
        self._digests = list(specs)
        self._engine = Engine(
            runner, limits, lambda digest: host_adapter.read(*specs[digest], torch.float32), host_bytes=4 << 30
        )
        self._asked = 0

    def measure(self, rows: int, adapters: int, steps: int) -> dict[str, Any]:
        """Measure decoding steps.

        Args:
            rows: number of sequences.
            adapters: number of different adapters among them.
            steps: number of steps; as many more are measured kernel by kernel.

        Returns:
            Median times in milliseconds, of a step and of each kind of kernel.
        """
        self._ask(rows, adapters, 2 * steps + SKIPPED_STEPS)
        scheduler = self._engine.scheduler
        while scheduler.waiting or not all(sequence.decoding for sequence in scheduler.running):
            self._engine.step()
        whole = [self._timed() for _ in range(steps)]
        with watched(self._decoder) as stopwatch:
            for _ in range(steps):
                self._engine.step()
        while len(scheduler):
            self._engine.step()
        kernels = {kind: round(1e3 * took / steps, 2) for kind, took in stopwatch.seconds.items()}
        return {"rows": rows, "adapters": adapters, "step_ms": round(1e3 * median(whole), 2), "kernels_ms": kernels}

    def _timed(self) -> float:
        began = time.perf_counter()
        self._engine.step()
        return time.perf_counter() - began

    def _ask(self, rows: int, adapters: int, max_tokens: int) -> None:
        for number in range(rows):
            self._asked += 1
            # A prompt of its own for each, or the prefix cache would answer.
            prompt = tuple(7 + (self._asked * 131 + 17 * place) % 5000 for place in range(PROMPT_TOKENS))
            digest = self._digests[number % adapters] if adapters else None
            sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0)
            self._engine.add(Request(id=f"r{self._asked}", prompt=prompt, adapter=digest, sampling=sampling))


def reading_ms(num_bytes: int) -> float:
    """Measure the time to read so many bytes of memory once with all threads, in milliseconds."""
    memory = torch.ones(num_bytes // 8, dtype=torch.int64)
    took = []
    for _ in range(7):
        began = time.perf_counter()
        memory.sum()
        took.append(time.perf_counter() - began)
    return round(1e3 * min(took), 2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the loads of the command line, and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="folder or hub id")
    parser.add_argument("--out", type=Path, required=True, help="where adapters are kept that were made")
    parser.add_argument("--home", type=Path, default=Path("~/.graftwork"), help="where the base is kept")
    parser.add_argument("--loads", default="1x0,16x0,16x1,16x8,16x32", help="ROWSxADAPTERS")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    loads = [tuple(map(int, load.split("x"))) for load in options.loads.split(",")]
    home = options.home.expanduser()
    info = prepare(options.base, home, lambda done, total: None)
    most = max(adapters for _, adapters in loads)
    folders = AdapterFolders(Path(info.path), options.out).folders(named("a", most)).values()
    specs = {spec.digest: (folder, spec) for folder in folders for spec in [read_spec(folder, info, AdapterLimits())]}
    config = EngineConfig(kernel_cache=home / "kernels", num_slots=max(16, most), max_sequences=32)
    steps = Steps(info, specs, config)
    measured = [steps.measure(rows, adapters, options.steps) for rows, adapters in loads]
    floor = reading_ms(steps.weight_bytes)
    if options.json:
        print(json.dumps({"reading_ms": floor, "loads": measured}))
        return
    kinds = list(dict.fromkeys(kind for figures in measured for kind in figures["kernels_ms"]))
    print(markdown_row(["rows", "adapters", "step ms", *kinds, "the rest"]))
    print(markdown_row(["---"] * (4 + len(kinds))))
    for figures in measured:
        kernels = figures["kernels_ms"]
        rest = round(figures["step_ms"] - sum(kernels.values()), 2)
        print(
            markdown_row(
                [figures["rows"], figures["adapters"], figures["step_ms"], *(kernels.get(k, 0) for k in kinds), rest]
            )
        )
    print(f"\nReading {steps.weight_bytes / 1e6:.0f} MB of weights once takes {floor} ms here.")


if __name__ == "__main__":
    main()
