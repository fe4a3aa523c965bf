"""What a benchmark needs of a system: how it is made ready, started for some jobs, and asked. And what all share.

Knows no system in particular.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx

from benchmarks.harness.adapter_folders import AdapterFolders
from benchmarks.harness.child_process import ChildProcess
from benchmarks.harness.display import Display
from benchmarks.harness.errors import BenchmarkError
from benchmarks.load.generator import Endpoint, Load, run
from benchmarks.load.request_pairs import RequestPairs, run_pairs
from benchmarks.load.workloads import Workload
from benchmarks.systems.peer_cache import PeerCache
from graftwork.adapters.base import BaseInfo

#: Seconds that a system may take to start; one that compiles on its first start is slow.
_START_SECONDS = 900.0


class Running(Protocol):
    """A system that is up."""

    @property
    def child(self) -> ChildProcess: ...

    def measure(self, what: Load | RequestPairs) -> dict[str, Any]:
        """Carry it out, and say what was met."""


class System(Protocol):
    """``key`` is for ``--only``, ``title`` for the table."""

    @property
    def key(self) -> str: ...

    @property
    def title(self) -> str: ...

    def unsupported_reason(self, job: Workload) -> str | None:
        """Why this system cannot do the job at all; None: it can."""

    def prepare(self, jobs: Sequence[Workload]) -> None:
        """Install it, and make what it needs for these jobs. What is there already is not made again."""

    def start_options(self, job: Workload) -> Hashable:
        """How it should be started for the job. Jobs of one arrangement share one start."""

    def serving(self, arrangement: Hashable, jobs: Sequence[Workload]) -> AbstractContextManager[Running]:
        """Start it for these jobs, which share the arrangement; it is gone after the ``with``."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkSite:
    """Where systems are measured: the same for all."""

    workshop: PeerCache
    base: BaseInfo
    adapters: AdapterFolders
    device: str
    """``cpu`` or ``cuda``."""

    @property
    def display(self) -> Display:
        return self.workshop.display

    @property
    def logs(self) -> Path:
        return self.workshop.folder / "logs"

    @property
    def base_key(self) -> str:
        """What is made of this base is kept apart under this name."""
        return base_key(self.base)

    @property
    def base_folder(self) -> Path:
        """The base's folder under a path of the cache's own: adapters, which are kept, say what they are for."""
        return self.workshop.folder / "bases" / self.base_key

    def write_adapters(self, jobs: Sequence[Workload]) -> None:
        """All that these jobs name, before anything is measured."""
        wanted = {name for job in jobs for name in job.adapters}
        if missing := self.adapters.missing(wanted):
            with self.display.working(f"Writing {len(missing)} adapters"):
                self.adapters.folders(missing)


def make_site(workshop: PeerCache, base: BaseInfo, device: str) -> BenchmarkSite:
    folder = workshop.folder / "bases" / base_key(base)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not folder.is_symlink() or os.readlink(folder) != base.path:
        folder.unlink(missing_ok=True)
        folder.symlink_to(base.path)
    adapters = AdapterFolders(folder, workshop.folder / "adapters" / base_key(base))
    return BenchmarkSite(workshop=workshop, base=base, adapters=adapters, device=device)


def base_key(base: BaseInfo) -> str:
    return f"{base.id.replace('/', '--')}-{base.digest.removeprefix('sha256:')[:10]}"


@dataclass(frozen=True, kw_only=True)
class HttpServer:
    """A server that speaks OpenAI's chat completions, yet to be started."""

    title: str
    command: Sequence[str | Path]
    url: str
    ready: str
    """The path that answers 200 once it serves."""
    log: Path
    display: Display
    fields: Callable[[str | None], Mapping[str, Any]]
    """What names an adapter in a request's body."""
    environment: Mapping[str, str] | None = None

    @contextmanager
    def running(self) -> Iterator[Running]:
        with ChildProcess(self.command, log=self.log, environment=self.environment) as child:
            with self.display.working(f"{self.title}: starting"):
                self._wait(child)
            yield RunningServer(child, Endpoint(url=self.url, fields=self.fields))

    def _wait(self, child: ChildProcess) -> None:
        deadline = time.monotonic() + _START_SECONDS
        with httpx.Client(base_url=self.url, timeout=10, trust_env=False) as client:
            while True:
                if (code := child.poll()) is not None:
                    why = f"ended with {code} before it served"
                elif time.monotonic() > deadline:
                    why = f"did not serve within {_START_SECONDS:.0f} s"
                else:
                    try:
                        if client.get(self.ready).status_code == 200:
                            return
                    except httpx.TransportError:
                        pass  # nobody listens yet
                    time.sleep(0.2)
                    continue
                raise BenchmarkError(f"{self.title} {why}. Its log is {self.log}:\n{child.log_tail()}")


@dataclass(frozen=True)
class RunningServer:
    """Asked over HTTP."""

    child: ChildProcess
    endpoint: Endpoint

    def measure(self, what: Load | RequestPairs) -> dict[str, Any]:
        asked = run(self.endpoint, what) if isinstance(what, Load) else run_pairs(self.endpoint, what)
        figures = asyncio.run(asked)
        # After errors it may be about to end: its guard has its children to see to first.
        if (code := self.child.poll(3.0 if figures["errors"] else 0.0)) is not None:
            log = self.child.log
            raise BenchmarkError(f"It ended with {code} under load. Its log is {log}:\n{self.child.log_tail()}")
        return figures


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def drop_from_page_cache(folder: Path) -> None:
    """Let the kernel forget the files below ``folder``: the next read comes from the disk."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
