"""A temporary Graftwork server for one benchmark, and the memory of training runs and of the other processes."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

import psutil
from rich.console import Console

from benchmarks.harness.display import Display
from benchmarks.systems.system import HttpServer, free_port

RUN: Final = "graftwork.training.worker.job"
"""The module by which the processes of training runs are recognised."""

SAMPLE_SECONDS: Final = 0.5
_QUIET: Final = Console(quiet=True)


@contextmanager
def serving(home: Path, usual: Path, *flags: str, log: Path) -> Iterator[str]:
    """Run a server for the block, and yield its URL.

    Args:
        home: the home of the server; it is created.
        usual: the home whose bases and kernels are used.
        *flags: further options of ``graftwork serve``.
        log: the log of the server.

    Raises:
        BenchmarkError: if it does not start; the message has the end of its log.
    """
    make_home(home, usual)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    server = HttpServer(
        title="Graftwork",
        command=serve_command(home, port, flags),
        url=url,
        ready="/ready",
        log=log,
        display=Display(_QUIET),
        fields=lambda adapter: {"model": adapter},
    )
    with server.running():
        yield url


def make_home(home: Path, usual: Path) -> None:
    """Make a home that shares the bases and kernels of the usual one, which take long to make."""
    home.mkdir()
    for shared in ("base", "kernels"):
        there = usual.expanduser().resolve() / shared
        there.mkdir(parents=True, exist_ok=True)
        (home / shared).symlink_to(there, target_is_directory=True)


def serve_command(home: Path, port: int, flags: Sequence[str]) -> list[str | Path]:
    """Return the command that starts a server."""
    return [sys.executable, "-m", "graftwork", "serve", "--home", home, "--port", str(port), *flags]


class MemoryMonitor:
    """Measures the peak memory of this process's descendants during a ``with`` block.

    Attributes:
        run_bytes: peak of training runs since the last `reset`, in bytes; shared pages count for each process.
        other_bytes: peak of all other processes together.
    """

    def __init__(self) -> None:
        self.run_bytes = self.other_bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()

    def reset(self) -> None:
        """Reset both peaks to 0."""
        self.run_bytes = self.other_bytes = 0

    def _watch(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            held: Counter[bool] = Counter()
            for process in psutil.Process().children(recursive=True):
                try:
                    held[RUN in process.cmdline()] += process.memory_info().rss
                except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                    continue  # it has just ended
            self.run_bytes = max(self.run_bytes, held[True])
            self.other_bytes = max(self.other_bytes, held[False])
