"""Child processes of a benchmark, each with a guard, a log, and a measurement of the memory of its process tree."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Self

import psutil

from benchmarks.harness import guard

#: Time between two measurements of memory in seconds; each takes some milliseconds of CPU time.
_SAMPLE_SECONDS = 1.0


class ChildProcess:
    """A running command. It ends, with all its descendants, at the end of the ``with`` block or if this process dies.

    Args:
        command: the program and its arguments.
        log: file for its output.
        environment: variables to add to `plain_environment`.
        folder: working directory.
        talks: whether standard input and output are pipes; only standard error goes to the log then.
        patience: time in seconds in which the command must end after SIGTERM.

    Attributes:
        peak_bytes: maximum resident memory of the process tree since the start or `reset_peak`, in bytes.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        talks: bool = False,
        patience: float = 10.0,
    ) -> None:
        self.log = log
        self._patience = patience
        log.parent.mkdir(parents=True, exist_ok=True)
        held, self._lifeline = os.pipe()
        try:
            with log.open("wb") as output:
                self._guard = subprocess.Popen(
                    [sys.executable, "-P", guard.__file__, str(held), str(patience), *map(str, command)],
                    cwd=folder,
                    env={**plain_environment(), **(environment or {})},
                    stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
                    stdout=subprocess.PIPE if talks else output,
                    stderr=output,
                    pass_fds=[held],
                    start_new_session=True,  # the benchmark handles Ctrl-C, and ends its children in order
                )
        except BaseException:
            os.close(self._lifeline)
            raise
        finally:
            os.close(held)
        self.peak_bytes = 0
        self._done = threading.Event()
        self._watch = threading.Thread(target=self._watch_memory, daemon=True)
        self._watch.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def input(self) -> IO[bytes]:
        """Its standard input; only with ``talks``."""
        assert self._guard.stdin is not None
        return self._guard.stdin

    @property
    def output(self) -> IO[bytes]:
        """Its standard output; only with ``talks``."""
        assert self._guard.stdout is not None
        return self._guard.stdout

    def poll(self, seconds: float = 0.0) -> int | None:
        """Wait for at most ``seconds``, and return the exit code; None if it still runs."""
        try:
            return self._guard.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def wait(self) -> int:
        """Wait for its end, and return the exit code."""
        return self._guard.wait()

    def stop(self) -> None:
        """End the command and all its descendants, and wait for that."""
        if self._done.is_set():
            return
        self._done.set()
        os.close(self._lifeline)
        try:
            self._guard.wait(self._patience + 20)
        finally:
            self._watch.join()
            for pipe in (self._guard.stdin, self._guard.stdout):
                if pipe is not None:
                    pipe.close()

    def reset_peak(self) -> None:
        """Reset `peak_bytes` to the current memory."""
        self.peak_bytes = self._resident()

    def log_tail(self, lines: int = 8) -> str:
        """Return the last lines of the log."""
        return "\n".join(self.log.read_text(errors="replace").strip().splitlines()[-lines:])

    def _watch_memory(self) -> None:
        while not self._done.wait(_SAMPLE_SECONDS):
            self.peak_bytes = max(self.peak_bytes, self._resident())

    def _resident(self) -> int:
        """Return the resident memory of the process tree in bytes; shared pages count for each process."""
        total = 0
        try:
            for process in psutil.Process(self._guard.pid).children(recursive=True):
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
        except psutil.NoSuchProcess:
            return 0
        return total


def plain_environment() -> dict[str, str]:
    """Return the environment without variables of Graftwork, virtual environments and this Python."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GRAFTWORK_", "VIRTUAL_ENV")) and name not in ("PYTHONPATH", "PYTHONHOME")
    }
