"""The training worker's process: started, restarted and stopped by the server, and informed when requests are answered.

It is a program of its own, ``python -m graftwork.training.worker``. It calls the server over HTTP with a key that is
generated for it and valid as long as the server runs.
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

#: The caller whose key the worker has.
PRINCIPAL: Final = Principal("trainer", Role.OPERATOR, "trainer")
POLL_SECONDS: Final = 0.1
STOP_SECONDS: Final = 15.0
MIN_RESTART_SECONDS, MAX_RESTART_SECONDS = 1.0, 60.0
"""The pause before a worker that died is restarted; it doubles while workers last less than a minute."""


class TrainerProcess:
    """The training worker's process of one server.

    Args:
        config: The server's settings.
        base: The base, prepared.
        shared_state: Says whether requests are being answered.

    Attributes:
        key: The API key that the worker calls with.
        num_restarts: How often it was started again.
    """

    def __init__(self, config: ServerConfig, base: BaseInfo, shared_state: SharedState) -> None:
        self.key = secrets.token_urlsafe(32)
        self.num_restarts = 0
        self._config = config
        self._base = base
        self._shared_state = shared_state
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="trainer", daemon=True)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the worker, unless the config says not to. Call it after the server's other processes were forked."""
        if not self._config.no_trainer:
            self._thread.start()

    def stop(self) -> None:
        """Stop the worker, which gives its jobs back. It is killed after ``STOP_SECONDS``."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS + 5)

    def _watch(self) -> None:
        """Start the worker and restart it when it dies.

        One thread for the worker's whole life: when the thread that started it ends, the kernel ends the worker.
        """
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
        command += ["--artifacts", config.artifacts] if config.artifacts is not None else []
        command += ["--allow-python-graders"] if config.allow_python_graders else []
        return subprocess.Popen(
            [*command, "--parent", str(os.getpid())],
            env={
                **os.environ,
                "GRAFTWORK_API_KEY": self.key,
                # Not an argument: those can be read by every user of the machine.
                **({} if config.database is None else {"GRAFTWORK_DATABASE": config.database}),
                **_device_environment(config.trainer_device),
            },
            stdin=subprocess.PIPE,
        )

    def _report_load(self, process: subprocess.Popen[bytes]) -> None:
        """Tell the worker when the server becomes busy and idle, until it ends or must be stopped."""
        assert process.stdin is not None
        reported = False
        while process.poll() is None and not self._stopping.wait(POLL_SECONDS):
            busy = self._shared_state.total_open > 0
            if busy != reported:
                with contextlib.suppress(BrokenPipeError):  # it died: the next poll sees that
                    process.stdin.write(b"1" if busy else b"0")
                    process.stdin.flush()
                reported = busy

    def _terminate(self, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            log.warning("the training worker did not stop in %.0f s", STOP_SECONDS)
            process.kill()
            process.wait()


def _device_environment(device: str | None) -> dict[str, str]:
    """The environment in which CUDA shows that GPU alone, or none."""
    return {} if device is None else {"CUDA_VISIBLE_DEVICES": "" if device == "cpu" else device}
