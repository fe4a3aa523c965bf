"""Processes that a benchmark starts: each under a guard, with a log, and with the memory of its whole tree watched."""

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

#: How often memory is looked at, in seconds: a look costs some milliseconds of what is measured.
_SAMPLE_SECONDS = 1.0


class ChildProcess:
    """A running command. Leave the ``with``, or die: the command is gone, and so is all that it started."""

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
        """Start it. Its output goes to ``log``; with ``talks`` its standard input and output are pipes instead.

        ``patience``: seconds that it has to end by itself when it is asked to.
        """
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
                    start_new_session=True,  # Ctrl-C is for the benchmark, which then ends its children in order
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
        assert self._guard.stdin is not None
        return self._guard.stdin

    @property
    def output(self) -> IO[bytes]:
        assert self._guard.stdout is not None
        return self._guard.stdout

    def poll(self, seconds: float = 0.0) -> int | None:
        """The exit code, or None if it still runs after so long."""
        try:
            return self._guard.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def wait(self) -> int:
        return self._guard.wait()

    def stop(self) -> None:
        """End it and all it started; returns when they are gone."""
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
        """Begin anew: ``peak_bytes`` is the most memory since then."""
        self.peak_bytes = self._resident()

    def log_tail(self, lines: int = 8) -> str:
        return "\n".join(self.log.read_text(errors="replace").strip().splitlines()[-lines:])

    def _watch_memory(self) -> None:
        while not self._done.wait(_SAMPLE_SECONDS):
            self.peak_bytes = max(self.peak_bytes, self._resident())

    def _resident(self) -> int:
        """Resident bytes of the whole tree: what processes share counts for each, as in most tools."""
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
    """This process's environment, less what is meant for a Graftwork server or for this Python alone."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GRAFTWORK_", "VIRTUAL_ENV")) and name not in ("PYTHONPATH", "PYTHONHOME")
    }
