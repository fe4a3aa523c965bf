"""The training worker's process, as the server sees it: started, told when requests are answered, started again when
it dies, stopped with the server.

It is a program of its own, ``python -m graftwork.training.worker``: nothing of training is imported here. What it needs
of the server it asks over HTTP, under a key that only the two know and that goes with the server.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import subprocess
import sys
import threading
import time
from typing import Final

from graftwork.adapters.access.keys import Role
from graftwork.adapters.access.principal import Principal
from graftwork.adapters.base import BaseInfo
from graftwork.server.config import ServerConfig
from graftwork.server.processes import SharedState

log = logging.getLogger(__name__)

PRINCIPAL: Final = Principal("trainer", Role.OPERATOR, "trainer")
POLL_SECONDS: Final = 0.1
STOP_SECONDS: Final = 15.0
MIN_RESTART_SECONDS, MAX_RESTART_SECONDS = 1.0, 60.0
"""How long a worker that died is waited for: longer each time that it did not last a minute."""


class TrainerProcess:
    """The worker of one server. ``key`` is what it calls with."""

    def __init__(self, config: ServerConfig, base: BaseInfo, board: SharedState) -> None:
        self.key = secrets.token_urlsafe(32)
        self.num_restarts = 0
        self._config = config
        self._base = base
        self._board = board
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="trainer", daemon=True)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """When all processes of the server have been forked."""
        if not self._config.no_trainer:
            self._thread.start()

    def stop(self) -> None:
        """It gives back what it works on; what does not end in time is killed."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS + 5)

    def _watch(self) -> None:
        """One thread for its whole life: when the thread that started it ends, the kernel ends the worker."""
        pause = MIN_RESTART_SECONDS
        while not self._stopping.is_set():
            began = time.monotonic()
            process = self._spawn()
            self._report_load(process)
            if self._stopping.is_set():
                self._terminate(process)
                return
            lasted = time.monotonic() - began
            pause = MIN_RESTART_SECONDS if lasted > MAX_RESTART_SECONDS else min(pause * 2, MAX_RESTART_SECONDS)
            log.error(
                "the training worker ended (exit code %s); starting it again in %.0f s", process.returncode, pause
            )
            self.num_restarts += 1
            self._stopping.wait(pause)

    def _spawn(self) -> subprocess.Popen[bytes]:
        config = self._config
        folder = config.home / "jobs"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        base = folder / "base.json"
        base.write_text(self._base.to_json(), encoding="utf-8")
        command = [sys.executable, "-m", "graftwork.training.worker", "--home", str(config.home), "--base", str(base)]
        command += ["--url", config.own_url, "--nice", str(config.trainer_nice), "--share", str(config.trainer_share)]
        command += ["--threads", str(config.trainer_threads or 0), "--log-level", config.log_level]
        return subprocess.Popen(
            [*command, "--parent", str(os.getpid())],
            env={**os.environ, "GRAFTWORK_API_KEY": self.key, **_device_environment(config.trainer_device)},
            stdin=subprocess.PIPE,
        )

    def _report_load(self, process: subprocess.Popen[bytes]) -> None:
        """Say when requests begin and end to be answered, until it has ended or is to end."""
        assert process.stdin is not None
        told = False
        while process.poll() is None and not self._stopping.wait(POLL_SECONDS):
            busy = self._board.total_open > 0
            if busy != told:
                with contextlib.suppress(BrokenPipeError):  # it died: the next look sees that
                    process.stdin.write(b"1" if busy else b"0")
                    process.stdin.flush()
                told = busy

    def _terminate(self, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            log.warning("the training worker did not stop in %.0f s", STOP_SECONDS)
            process.kill()
            process.wait()


def _device_environment(device: str | None) -> dict[str, str]:
    """The environment in which CUDA shows that card alone, or none."""
    return {} if device is None else {"CUDA_VISIBLE_DEVICES": "" if device == "cpu" else device}
