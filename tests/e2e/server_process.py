"""``graftwork serve`` in a process of its own, used through its public interfaces only."""

from __future__ import annotations

import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx
import openai
import psutil
from prometheus_client.parser import text_string_to_metric_families

from graftwork.clients.client import Client
from graftwork.server.processes import die_with_parent

BASE = "smollm2-135m-instruct"

#: Bounds for a busy machine; nothing here is measured.
START_SECONDS = 180.0
STOP_SECONDS = 30.0

T = TypeVar("T")

#: ``httpx.get`` over plain HTTP. It would read all certificates each time, which takes longer than asking a server.
get = partial(httpx.get, verify=False)


class Server:
    """One home and the server on it, which may be started and stopped several times."""

    def __init__(self, home: Path, *flags: str, environment: Mapping[str, str] | None = None) -> None:
        self.home = home
        self.flags = flags
        self.url = f"http://127.0.0.1:{free_port()}"
        self.key: str | None = None
        self._environment = environment or {}
        self._starts = 0
        self._process: subprocess.Popen[bytes] | None = None

    # -- its life ------------------------------------------------------------------------------------------------
    def start(self) -> Server:
        """Start it, without waiting for anything."""
        self._starts += 1
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                command(self.home, "--port", self.url.rpartition(":")[2], *self.flags),
                env=environment(self._environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C at the tests' terminal is not for the server
                preexec_fn=partial(die_with_parent, os.getpid()),  # but it does not outlive tests that were killed
            )
        return self

    def start_and_wait(self) -> Server:
        self.start()
        return self.wait_until_ready()

    def wait_until_ready(self, seconds: float = START_SECONDS) -> Server:
        eventually(self.is_ready, seconds, f"{self.url} is ready")
        return self

    def is_ready(self) -> bool:
        if (code := self.process.poll()) is not None:
            raise AssertionError(f"the server ended with exit code {code}:\n{self.log[-4000:]}")
        return self.status() == 200

    def status(self) -> int | None:
        """What /ready answers; None while nobody listens."""
        try:
            return get(f"{self.url}/ready", timeout=5).status_code
        except httpx.TransportError:
            return None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        """To the main process alone, as ``kill`` and ``docker stop`` do it."""
        self.process.send_signal(number)

    def send_to_all(self, number: signal.Signals) -> None:
        """To all its processes, as Ctrl-C in a terminal does it."""
        os.killpg(self.process.pid, number)

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        """The exit code. None of its processes is left afterwards."""
        code = self.process.wait(seconds)
        eventually(lambda: not self.processes(), 2, "all processes of the server have ended")
        return code

    def stop(self) -> int:
        self.send(signal.SIGTERM)
        return self.wait()

    def put_down(self) -> None:
        """However it is, it is gone afterwards: for the end of a test that failed."""
        if self._process is not None:
            for process in self.processes():
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            self._process.wait(STOP_SECONDS)

    # -- its processes -------------------------------------------------------------------------------------------
    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the server was not started"
        return self._process

    def processes(self) -> list[psutil.Process]:
        """All of its session that live: its own and whatever they started."""
        return [process for process in psutil.process_iter() if _is_alive_in(process, self.process.pid)]

    def processes_of(self, module: str) -> list[psutil.Process]:
        """Those of them that were started as ``python -m module``."""
        found = []
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):  # it has ended since
                if module in process.cmdline():
                    found.append(process)
        return found

    @property
    def worker(self) -> psutil.Process:
        """The engine worker, by the pid that the log told last."""
        return psutil.Process(int(re.findall(r"engine worker (\d+) is ready", self.log)[-1]))

    @property
    def api(self) -> psutil.Process:
        """The process that answers HTTP: of those that were forked, the last."""
        forked = [p for p in self.processes_of("graftwork") if p.pid != self.process.pid]
        return max(forked, key=psutil.Process.create_time)

    # -- what it says --------------------------------------------------------------------------------------------
    @property
    def log_file(self) -> Path:
        return self.home.with_name(f"{self.home.name}-{self._starts}.log")

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def client(self, key: str | None = None, **options: Any) -> Client:
        return Client(self.url, key or self.key, **options)

    def openai(self, key: str | None = None, **options: Any) -> openai.OpenAI:
        """The official client, strict, and showing every failure instead of asking again."""
        return openai.OpenAI(**self.openai_options(key), **options)

    def openai_options(self, key: str | None = None) -> dict[str, Any]:
        return {
            "base_url": f"{self.url}/v1",
            "api_key": key or self.key or "none",
            "max_retries": 0,
            "timeout": 120.0,
            "_strict_response_validation": True,
        }

    def metric(self, name: str, **labels: str) -> float:
        """The sum of all samples of a metric with these labels."""
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        text = get(f"{self.url}/metrics", headers=headers, timeout=30).raise_for_status().text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == f"graftwork_{name}" and labels.items() <= sample.labels.items()
        )


def command(home: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "graftwork", "serve", "--home", str(home), *flags]


def refused(*flags: str, home: Path, changes: dict[str, str] | None = None, seconds: float = START_SECONDS) -> str:
    """What ``graftwork serve`` says on standard error before it ends with an error, by itself and in time."""
    done = subprocess.run(
        command(home, *flags), env=environment(changes), capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode not in (0, None), done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's, without settings for a server but where kernels are kept that were built before; threads of other
    tests' servers are not fought with spinning."""
    plain = {
        name: value
        for name, value in os.environ.items()
        if name == "GRAFTWORK_KERNEL_CACHE" or not name.startswith("GRAFTWORK_")
    }
    return {**plain, "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive", **(changes or {})}


#: Below those that the kernel gives away, and others than those of a process of tests that runs beside this one: what
#: is free now is still free when somebody binds it.
_ports = itertools.count(20_000 + 97 * os.getpid() % 10_000)


def free_port() -> int:
    for port in _ports:
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no port is free")


def eventually(check: Callable[[], T], seconds: float, what: str, *, every: float = 0.05) -> T:
    """Wait until ``check`` is true, and return what it says."""
    deadline = time.monotonic() + seconds
    while not (said := check()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(every)
    return said


def _is_alive_in(process: psutil.Process, session: int) -> bool:
    try:
        return os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False
