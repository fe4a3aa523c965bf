"""The run of a job as a process: started, paused, gone on with, ended.

Knows nothing of jobs, nor of what a run does; how one has to be started is `launch`'s business.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from graftwork.training.worker import launch

RUN_COMMAND: Final = (sys.executable, "-m", "graftwork.training.worker.job")
KEY_VARIABLE: Final = "GRAFTWORK_API_KEY"
LOG_FILE: Final = "run.log"


class RunProcess:
    """One run: a group of processes that starts, pauses, goes on and ends together.

    ``command`` is what carries it out, before its folder; ``key`` the server's, if it asks for one; of ``nice`` and
    ``threads`` tells `launch`. What it writes goes into `LOG_FILE`.
    """

    def __init__(self, folder: Path, command: Sequence[str], *, key: str | None, nice: int, threads: int) -> None:
        self.folder = folder
        self.paused = False
        environment = {**os.environ, **({KEY_VARIABLE: key} if key else {})}
        limits = (str(os.getpid()), str(nice), str(threads))
        with (folder / LOG_FILE).open("ab") as out:
            self._process = subprocess.Popen(
                (sys.executable, "-m", launch.__name__, str(folder), *limits, *command, str(folder)),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                process_group=0,  # Ctrl-C is not for it; what it starts is stopped with it
            )

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    def pause(self, wanted: bool) -> None:
        if wanted != self.paused and self.exit_code is None:
            self._signal(signal.SIGSTOP if wanted else signal.SIGCONT)
            self.paused = wanted

    def end(self, seconds: float) -> None:
        """Ask it to stop, wait that long, kill it."""
        self.pause(False)
        if seconds:
            self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        self._signal(signal.SIGKILL)
        self._process.wait()

    def describe_exit(self) -> str:
        code = self._process.returncode
        if code >= 0:
            tail = (self.folder / LOG_FILE).read_text(errors="replace").strip().rpartition("\n")[2][-300:]
            return f"the run ended with exit code {code} and no result ({tail})."
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = str(-code)
        hint = "; out of memory?" if -code == signal.SIGKILL else ""
        return f"the run was killed ({name}{hint})."

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
