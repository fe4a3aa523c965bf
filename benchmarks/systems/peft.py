"""PEFT's ``generate(adapter_names=…)`` in a process of its own: mixed adapters in one batch, without a server.

Batches are as they are: one begins when the one before has ended. So it has no staggered arrivals, and what it is
compared by leaves out all that a server costs.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.harness.child_process import ChildProcess
from benchmarks.harness.errors import BenchmarkError
from benchmarks.load.generator import Load, LoadStatistics, messages, model_of
from benchmarks.load.request_pairs import RequestPairs
from benchmarks.load.workloads import Workload
from benchmarks.systems.peer_cache import PeerCache
from benchmarks.systems.system import BenchmarkSite, Running

VERSION = "0.21.2"
PACKAGES = (f"peft=={VERSION}", "transformers==5.23.0", "accelerate==1.15.0", "jinja2>=3.1.6,<4")
TORCH = "2.13.0"

#: Runs in that environment: it is never imported here.
_WORKER = Path(__file__).with_name("peft_worker.py")


def install(workshop: PeerCache, device: str) -> Path:
    """Install PEFT for a device, unless the cache has it, and return the Python of its environment."""
    return workshop.environment(f"peft-{VERSION}", [*PACKAGES, torch_for(device)])


def torch_for(device: str) -> str:
    """Return the requirement of torch. For a GPU the CPU build is excluded, which pip would consider the newer one."""
    return f"torch=={TORCH},!={TORCH}+cpu" if device == "cuda" else f"torch=={TORCH}"


class PEFT:
    """PEFT's ``generate`` with mixed adapters, in a process of its own."""

    key = "peft"
    title = f"PEFT {VERSION} `generate(adapter_names=…)`, bf16, in process"

    def __init__(self, site: BenchmarkSite) -> None:
        self._site = site

    def unsupported_reason(self, job: Workload) -> str | None:
        """See `System`."""
        if isinstance(job.load, RequestPairs):
            return "nothing is kept between calls"
        if job.rate_from is not None:
            return "fixed batches: no arrivals"
        return "every adapter must be in memory" if job.many else None

    def prepare(self, jobs: Sequence[Workload]) -> None:
        """See `System`."""
        self._python = install(self._site.workshop, self._site.device)
        self._site.write_adapters(jobs)

    def start_options(self, job: Workload) -> Hashable:
        """See `System`."""
        return bool(job.adapters)  # without any it is the plain model

    @contextmanager
    def serving(self, arrangement: Hashable, jobs: Sequence[Workload]) -> Iterator[Running]:
        """See `System`."""
        names = sorted({name for job in jobs for name in job.adapters})
        folders = self._site.adapters.folders(names)
        command: list[str | Path] = [self._python, "-P", _WORKER, self._site.base_folder, self._site.device]
        command += [f"{name}={folder}" for name, folder in folders.items()]
        with ChildProcess(command, log=self._site.logs / "peft.log", talks=True) as child:
            with self._site.display.working(f"{self.title}: starting"):
                _read_reply(child)
            yield _Batches(child)


class _Batches:
    """The running worker. Each wave of clients is one batch."""

    def __init__(self, child: ChildProcess) -> None:
        self.child = child

    def measure(self, load: Load | RequestPairs) -> dict[str, Any]:
        assert isinstance(load, Load)
        self._batch(load, [load.warm_up_number] * load.clients, 4)
        tally = LoadStatistics()
        numbers = list(load.numbers)
        began = time.perf_counter()
        for start in range(0, len(numbers), load.clients):
            batch = numbers[start : start + load.clients]
            said = self._batch(load, batch, load.max_tokens)
            tally.tokens += said["tokens"]
            tally.first_seconds += [said["stamps"][0]] * len(batch)
            tally.total_seconds += [said["stamps"][-1]] * len(batch)
            gaps = [after - before for before, after in itertools.pairwise(said["stamps"])]
            tally.gap_seconds += gaps * len(batch)
        return tally.summary(load, time.perf_counter() - began)

    def _batch(self, load: Load, numbers: Sequence[int], max_tokens: int) -> dict[str, Any]:
        rows = [{"messages": messages(load, number), "adapter": model_of(load, number)} for number in numbers]
        try:
            self.child.input.write(json.dumps({"rows": rows, "max_tokens": max_tokens}).encode() + b"\n")
            self.child.input.flush()
        except BrokenPipeError:
            pass  # it has ended: hearing nothing says so
        return _read_reply(self.child)


def _read_reply(child: ChildProcess) -> dict[str, Any]:
    line = child.output.readline()
    if not line:
        raise BenchmarkError(f"PEFT's process ended. Its log is {child.log}:\n{child.log_tail()}")
    said: dict[str, Any] = json.loads(line)
    return said
