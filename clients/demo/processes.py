"""``graftwork`` commands run as processes of their own, which do not outlive the demo, whatever ends it.

Each writes to a log.
"""

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
"""Variables of ours that are about this machine and not about another server."""

START_SECONDS: Final = 900.0
"""How long a server may take: on the first start it fetches the base."""

STOP_SECONDS: Final = 45.0
_POLL_SECONDS: Final = 0.2

Watch = Callable[[str], None]
"""Is called a few times a second with the last line of the log."""


class CommandFailedError(GraftworkClientError):
    """A command that the demo needs has failed. The message has its last words."""


class DemoProcesses:
    """The processes of one demo; leave the ``with``, and they are gone."""

    def __init__(self, logs: Path, environment: Mapping[str, str] | None = None) -> None:
        """``environment`` is added to this process's, less what there is meant for other servers."""
        logs.mkdir(parents=True, exist_ok=True)
        self._logs = logs
        own = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("GRAFTWORK_") or name in _INHERITED_VARIABLES
        }
        # Server and training take turns on the same cores: neither spins while it waits.
        self._environment = {"OMP_WAIT_POLICY": "passive", **own, **(environment or {})}
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def serve(self, home: Path, *flags: str, watch: Watch) -> str:
        """Start a server on a free port and wait until it is ready. Its URL."""
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
        """Run a command with ``--json`` to its end: what it printed. ``name`` is its log's."""
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
        """Ask all that run to end, the youngest first, and end what does not. Returns when they are gone."""
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
                start_new_session=True,  # Ctrl-C is for the demo, which then ends its children in order
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
    """In a child that was just made: be asked to end when the demo is no more, however that happened."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)
