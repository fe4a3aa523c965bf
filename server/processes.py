"""What the server's processes share: state in shared memory, secrets, and the lock of the home.

Linux only: parent-death signals and pidfds have no portable equivalent.
"""

from __future__ import annotations

import ctypes
import fcntl
import multiprocessing as mp
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from graftwork.adapters.errors import ConfigurationError
from graftwork.adapters.parent_death import die_with_parent as die_with_parent

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h

#: ``SharedState.phase``.
SERVING, DRAINING, STOPPING = 0, 1, 2


def keep_freed_memory() -> None:
    """Let malloc keep freed memory instead of returning it to the system: every step needs large tensors again.

    Without this every step has page faults for all of them; steps with prompts took more than twice as long.
    glibc only; elsewhere nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in (
            (_M_MMAP_THRESHOLD, 1 << 28),
            (_M_TRIM_THRESHOLD, (1 << 31) - 1),
            (_M_TOP_PAD, 1 << 26),
        ):
            mallopt(parameter, value)


class SharedState:
    """Shared memory of all processes: the server's phase, and how many answers each API process has open.

    Args:
        num_api_processes: Processes that answer HTTP requests.
        num_engines: Engine workers.
    """

    def __init__(self, num_api_processes: int, num_engines: int = 1) -> None:
        context = mp.get_context("spawn")
        # Without locks: each number has one writer, and a process that is killed must not take a lock along.
        self._phase = context.Value("i", SERVING, lock=False)
        self._num_engines = num_engines
        self._open = context.Array("i", num_api_processes * num_engines, lock=False)
        self._engine_starts = context.Array("i", num_engines, lock=False)

    @property
    def phase(self) -> int:
        """SERVING, DRAINING or STOPPING; set by the main process."""
        return int(self._phase.value)

    @phase.setter
    def phase(self, value: int) -> None:
        self._phase.value = value

    def set_open(self, api_process: int, engine: int, count: int) -> None:
        """Publish how many answers of an engine worker an API process has open."""
        self._open[api_process * self._num_engines + engine] = count

    def num_open(self, engine: int) -> int:
        """Answers of an engine worker that are open in all API processes."""
        return sum(self._open[engine :: self._num_engines])

    @property
    def total_open(self) -> int:
        """Answers that are open in all API processes."""
        return sum(self._open)

    def engine_starts(self, engine: int) -> int:
        """How often an engine worker has become ready."""
        return int(self._engine_starts[engine])

    def count_engine_start(self, engine: int) -> None:
        """Count one start. Called by that engine worker, of which one process runs at a time."""
        self._engine_starts[engine] += 1


def take_secret(variable: str) -> str | None:
    """Read an environment variable and erase it: forked children and ``/proc/PID/environ`` would go on showing it."""
    secret = os.environ.get(variable)
    if secret is not None:
        libc = ctypes.CDLL(None)
        libc.getenv.restype = ctypes.c_void_p
        if address := libc.getenv(variable.encode()):
            ctypes.memset(address, 0, len(os.fsencode(secret)))
        del os.environ[variable]
    return secret


@contextmanager
def home_lock(home: Path) -> Iterator[None]:
    """Hold the lock of a home.

    Raises:
        ConfigurationError: Another process holds it, and the message names its pid; or nothing can be written there.
    """
    path = home / "server.lock"
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        opened = path.open("a+")
    except OSError as error:
        raise ConfigurationError(
            f"The home {home} cannot be written: {error.strerror}. Name a folder of this user with --home."
        ) from error
    with opened as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            raise ConfigurationError(
                f"A server is already running on {home} (pid {holder}). Stop it, or give this one its own --home."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
