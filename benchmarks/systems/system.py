"""The protocol of systems under test: how they are prepared, started and measured; and what all of them share."""

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

#: Time in which a system must start, in seconds; some compile on their first start.
_START_SECONDS = 900.0


class Running(Protocol):
    """A system that is running."""

    @property
    def child(self) -> ChildProcess:
        """Its process."""

    def measure(self, what: Load | RequestPairs) -> dict[str, Any]:
        """Run a load, and return its measurements by name. Failed requests are counted under ``errors``.

        Raises:
            BenchmarkError: if the system ended.
        """


class System(Protocol):
    """A system that can be measured."""

    @property
    def key(self) -> str:
        """Its name for ``--only``."""

    @property
    def title(self) -> str:
        """Its name in tables."""

    def unsupported_reason(self, job: Workload) -> str | None:
        """Return why the system does not support a workload; None if it does."""

    def prepare(self, jobs: Sequence[Workload]) -> None:
        """Install the system, and make what it needs for these workloads, unless it exists already.

        Raises:
            BenchmarkError: if that fails.
        """

    def start_options(self, job: Workload) -> Hashable:
        """Return the options to start it with for a workload. Workloads with equal options share a process."""

    def serving(self, arrangement: Hashable, jobs: Sequence[Workload]) -> AbstractContextManager[Running]:
        """Run the system for the block.

        Args:
            arrangement: the options that `start_options` returned.
            jobs: the workloads with these options.

        Raises:
            BenchmarkError: if it does not start.
        """


@dataclass(frozen=True, kw_only=True)
class BenchmarkSite:
    """The environment of a benchmark, which is the same for all systems.

    Attributes:
        workshop: the cache of installed systems.
        base: the base.
        adapters: the adapters for it.
        device: ``cpu`` or ``cuda``.
    """

    workshop: PeerCache
    base: BaseInfo
    adapters: AdapterFolders
    device: str

    @property
    def display(self) -> Display:
        """The display of progress."""
        return self.workshop.display

    @property
    def logs(self) -> Path:
        """The folder of logs."""
        return self.workshop.folder / "logs"

    @property
    def base_key(self) -> str:
        """The name of folders for files that were made from this base."""
        return base_key(self.base)

    @property
    def base_folder(self) -> Path:
        """A link to the base's folder in the cache; adapters, which are kept, contain this path."""
        return self.workshop.folder / "bases" / self.base_key

    def write_adapters(self, jobs: Sequence[Workload]) -> None:
        """Generate the adapters of these workloads."""
        wanted = {name for job in jobs for name in job.adapters}
        if missing := self.adapters.missing(wanted):
            with self.display.working(f"Writing {len(missing)} adapters"):
                self.adapters.folders(missing)


def make_site(workshop: PeerCache, base: BaseInfo, device: str) -> BenchmarkSite:
    """Build the environment of a benchmark; ``device`` is ``cpu`` or ``cuda``."""
    folder = workshop.folder / "bases" / base_key(base)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not folder.is_symlink() or os.readlink(folder) != base.path:
        folder.unlink(missing_ok=True)
        folder.symlink_to(base.path)
    adapters = AdapterFolders(folder, workshop.folder / "adapters" / base_key(base))
    return BenchmarkSite(workshop=workshop, base=base, adapters=adapters, device=device)


def base_key(base: BaseInfo) -> str:
    """Return a name for folders of a base, from its id and digest."""
    return f"{base.id.replace('/', '--')}-{base.digest.removeprefix('sha256:')[:10]}"


@dataclass(frozen=True, kw_only=True)
class HttpServer:
    """A server with OpenAI's chat completions that is not started yet.

    Attributes:
        title: its name for people.
        command: the program and its arguments.
        url: its address.
        ready: the path that returns status 200 once it is ready.
        log: its log.
        display: the display of progress.
        fields: returns the fields of a request body that select an adapter, or the base for None.
        environment: environment variables to add.
    """

    title: str
    command: Sequence[str | Path]
    url: str
    ready: str
    log: Path
    display: Display
    fields: Callable[[str | None], Mapping[str, Any]]
    environment: Mapping[str, str] | None = None

    @contextmanager
    def running(self) -> Iterator[Running]:
        """Run the server for the block, which begins when it is ready.

        Raises:
            BenchmarkError: if it does not start.
        """
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
                        pass  # it does not listen yet
                    time.sleep(0.2)
                    continue
                raise BenchmarkError(f"{self.title} {why}. Its log is {self.log}:\n{child.log_tail()}")


@dataclass(frozen=True)
class RunningServer:
    """A running system that is measured over HTTP."""

    child: ChildProcess
    endpoint: Endpoint

    def measure(self, what: Load | RequestPairs) -> dict[str, Any]:
        """Run a load; see `Running`."""
        requests = run(self.endpoint, what) if isinstance(what, Load) else run_pairs(self.endpoint, what)
        figures = asyncio.run(requests)
        # After errors it may be about to end, which takes its guard some time.
        if (code := self.child.poll(3.0 if figures["errors"] else 0.0)) is not None:
            log = self.child.log
            raise BenchmarkError(f"It ended with {code} under load. Its log is {log}:\n{self.child.log_tail()}")
        return figures


def free_port() -> int:
    """Return a TCP port that is free at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def drop_from_page_cache(folder: Path) -> None:
    """Drop the files below a folder from the page cache, so that they are read from disk next time."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
