"""A fake system under test: the process of a fake peer, started, measured and stopped like real ones."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from rich.console import Console

from benchmarks.harness.display import Display
from benchmarks.harness.errors import BenchmarkError
from benchmarks.load.workloads import Workload
from benchmarks.systems.system import HttpServer, Running
from tests.benchmarks import fake_peer
from tests.e2e.server_process import free_port


def quiet() -> Display:
    with open(os.devnull, "w") as nowhere:
        return Display(Console(file=nowhere, quiet=True))


def fake_server(folder: Path, token: str, command: Sequence[str] | None = None) -> HttpServer:
    port = free_port()
    return HttpServer(
        title="fake",
        command=command or [sys.executable, fake_peer.__file__, str(port), token],
        url=f"http://127.0.0.1:{port}",
        ready="/asked",
        log=folder / f"{token}.log",
        display=quiet(),
        fields=lambda adapter: {"model": adapter or "base"},
    )


def alive(token: str) -> list[psutil.Process]:
    """The processes that carry this token, the guards above them and the children below them."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if token in (process.info["cmdline"] or ()) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def gone(token: str, seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while alive(token):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@dataclass
class FakeSystem:
    """Writes down what is done to it, and how many of its kind were up when it was."""

    key: str
    folder: Path
    token: str
    events: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    unprepared: str | None = None
    command: Sequence[str] | None = None

    @property
    def title(self) -> str:
        return self.key.title()

    def unsupported_reason(self, job: Workload) -> str | None:
        return self.refused.get(job.key)

    def prepare(self, jobs: Sequence[Workload]) -> None:
        self.events.append(f"{self.key} prepare {' '.join(job.key for job in jobs)}")
        if self.unprepared is not None:
            raise BenchmarkError(self.unprepared)

    def start_options(self, job: Workload) -> Hashable:
        return bool(job.adapters)

    @contextmanager
    def serving(self, arrangement: Hashable, jobs: Sequence[Workload]) -> Iterator[Running]:
        assert gone(self.token), "systems are measured one after another"
        self.events.append(f"{self.key} start {' '.join(job.key for job in jobs)}")
        with fake_server(self.folder, self.token, self.command).running() as running:
            yield running
        self.events.append(f"{self.key} stop")
