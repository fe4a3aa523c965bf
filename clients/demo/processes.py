"""``graftwork`` commands as child processes, each with a log. They end with the demo, also if it is killed."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

from graftwork.clients.client import Client
from graftwork.clients.errors import GraftworkClientError, GraftworkConnectionError

_PR_SET_PDEATHSIG: Final = 1
_INHERITED_VARIABLES: Final = ("GRAFTWORK_EMBEDDED_WHEEL", "GRAFTWORK_KERNEL_CACHE")
"""Environment variables of Graftwork that also apply to the demo's own server."""

START_SECONDS: Final = 900.0
"""Time in which a server must start; the first start fetches the base."""

STOP_SECONDS: Final = 45.0
_POLL_SECONDS: Final = 0.2

Watch = Callable[[str], None]
"""Callback that is called a few times per second with the last line of the log."""


class CommandFailedError(GraftworkClientError):
    """Raised when a command of the demo failed. The message has the end of its log."""


class DemoProcesses:
    """The processes of a demo, which end with the ``with`` block.

    Args:
        logs: folder of the logs.
        environment: variables to add to the environment, from which those for other Graftwork servers are removed.
    """

    def __init__(self, logs: Path, environment: Mapping[str, str] | None = None) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self._logs = logs
        own = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("GRAFTWORK_") or name in _INHERITED_VARIABLES
        }
        # Server and training share the same cores, so that neither should spin while waiting.
        self._environment = {"OMP_WAIT_POLICY": "passive", **own, **(environment or {})}
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def serve(self, home: Path, *flags: str, watch: Watch) -> str:
        """Start a server on a free port, wait until it is ready, and return its URL.

        Raises:
            CommandFailedError: if it does not start.
        """
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        log = self._logs / "serve.log"
        process = self._start(["serve", "--home", str(home), "--port", str(port), *flags], log, output=log)
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START_SECONDS
        with Client(url, "none", max_retries=0, timeout=5.0) as client:
            while not _is_ready(client):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise CommandFailedError(f"The server did not start. {log} ends with:\n{_tail(log, 8)}")
                watch(_tail(log, 1))
                time.sleep(_POLL_SECONDS)
        return url

    def run(self, name: str, words: list[str], watch: Watch) -> Any:
        """Run a command with ``--json``, and return the JSON that it printed.

        Args:
            name: the name of its log.
            words: the command and its arguments.
            watch: called with the last line of its log.

        Raises:
            CommandFailedError: if it fails.
        """
        log, output = self._logs / f"{name}.log", self._logs / f"{name}.json"
        process = self._start([*words, "--json"], log, output=output)
        while process.poll() is None:
            watch(_tail(log, 1))
            time.sleep(_POLL_SECONDS)
        self._running.remove(process)
        if process.returncode != 0:
            raise CommandFailedError(f"graftwork {words[0]} failed. {log} ends with:\n{_tail(log, 8)}")
        return json.loads(output.read_text(encoding="utf-8"))

    def stop(self) -> None:
        """Terminate all processes, the last one first; kill those that do not end in time."""
        for process in reversed(self._running):
            process.terminate()
        for process in reversed(self._running):
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()

    def _start(self, words: list[str], log: Path, *, output: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as errors, output.open("ab" if output == log else "wb") as result:
            process = subprocess.Popen(
                [sys.executable, "-m", "graftwork", *words],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=result,
                stderr=errors,
                start_new_session=True,  # the demo handles Ctrl-C, and ends its children in order
                preexec_fn=partial(_die_with, os.getpid()) if sys.platform == "linux" else None,
            )
        self._running.append(process)
        return process


def _is_ready(client: Client) -> bool:
    try:
        return client.ready().ready
    except GraftworkConnectionError:
        return False


def _tail(log: Path, lines: int) -> str:
    size = 4096
    with log.open("rb") as file:
        file.seek(max(log.stat().st_size - size, 0))
        text = file.read().decode(errors="replace")
    return "\n".join(text.strip().splitlines()[-lines:])


def _die_with(parent: int) -> None:
    """Called in a new child process: request SIGTERM when the parent dies."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)
