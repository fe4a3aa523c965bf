"""A Graftwork server with its trainer for one benchmark: a home of its own that goes with it, the usual base in it.

Also who of a benchmark's processes holds how much memory: training runs apart from everything else.
"""

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
"""In the command line of a training run."""

SAMPLE_SECONDS: Final = 0.5
_QUIET: Final = Console(quiet=True)


@contextmanager
def serving(home: Path, usual: Path, *flags: str, log: Path) -> Iterator[str]:
    """Serve from ``home``, made now, with bases and kernels of the ``usual`` home; the URL, once it is ready.

    Raises BenchmarkError, with the log's last words, when it does not get ready.
    """
    home.mkdir()
    for shared in ("base", "kernels"):  # take long to make and are the same for all
        there = usual.expanduser().resolve() / shared
        there.mkdir(parents=True, exist_ok=True)
        (home / shared).symlink_to(there, target_is_directory=True)
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


def serve_command(home: Path, port: int, flags: Sequence[str]) -> list[str | Path]:
    return [sys.executable, "-m", "graftwork", "serve", "--home", home, "--port", str(port), *flags]


class MemoryMonitor:
    """The most memory that this process's children held at one moment since `forget`, in bytes: training runs, and all
    the others together. What processes share counts for each, as in most tools."""

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
