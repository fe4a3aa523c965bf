"""The demo's own server as a child process with a log. It ends with the demo, also if that is killed."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, Self

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


class ServerFailedError(GraftworkClientError):
    """Raised when the demo's server did not start. The message has the end of its log."""


class DemoServer:
    """A server that ends with the ``with`` block.

    Args:
        logs: folder of its log.
    """

    def __init__(self, logs: Path) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self._log = logs / "serve.log"
        own = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("GRAFTWORK_") or name in _INHERITED_VARIABLES
        }
        # Server and training share the same cores, so that neither should spin while waiting.
        self._environment = {"OMP_WAIT_POLICY": "passive", **own}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def serve(self, home: Path, *, watch: Watch) -> str:
        """Start the server on a free port, wait until it is ready, and return its URL.

        Raises:
            ServerFailedError: if it does not start.
        """
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        # The demo waits for its trainings: they need not step back.
        words = ["serve", "--home", str(home), "--port", str(port), "--trainer-nice", "0"]
        with self._log.open("wb") as log:
            process = self._process = subprocess.Popen(
                [sys.executable, "-m", "graftwork", *words],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # the demo handles Ctrl-C, and ends its server in order
                preexec_fn=partial(_die_with, os.getpid()) if sys.platform == "linux" else None,
            )
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START_SECONDS
        with Client(url, "none", max_retries=0, timeout=5.0) as client:
            while not _is_ready(client):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise ServerFailedError(f"The server did not start. {self._log} ends with:\n{_tail(self._log, 8)}")
                watch(_tail(self._log, 1))
                time.sleep(_POLL_SECONDS)
        return url

    def stop(self) -> None:
        """Terminate the server; kill it if it does not end in time."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


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
