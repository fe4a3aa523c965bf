"""The process of a job's run: started, paused, resumed and ended by the worker."""

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
    """A run in a process group of its own, which is started by the constructor. Its output goes to `LOG_FILE`.

    Args:
        folder: the folder of the run.
        command: the command that carries out the run; the folder is appended to it.
        key: API key of the server, if it requires one.
        nice: increment of the niceness, 0 to 19.
        threads: number of CPU threads; 0 for the default of the libraries.

    Attributes:
        paused: whether the run is paused.
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
                process_group=0,  # not interrupted by Ctrl-C; child processes are paused and ended with it
            )

    @property
    def exit_code(self) -> int | None:
        """The exit code; negative for a signal, None while it runs."""
        return self._process.poll()

    def pause(self, wanted: bool) -> None:
        """Pause or resume the run, by SIGSTOP or SIGCONT."""
        if wanted != self.paused and self.exit_code is None:
            self._signal(signal.SIGSTOP if wanted else signal.SIGCONT)
            self.paused = wanted

    def end(self, seconds: float) -> None:
        """Send SIGTERM, wait for at most ``seconds``, then kill the run; 0 kills it at once."""
        self.pause(False)
        if seconds:
            self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        self._signal(signal.SIGKILL)
        self._process.wait()

    def describe_exit(self) -> str:
        """Describe for people how the run ended without a result. It must have ended."""
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
