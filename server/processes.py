"""What the server's processes owe one another: children die with their parent, and all share one small board.

Linux only: parent-death signals and pidfds have no portable twin.
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

SERVING, DRAINING, STOPPING = 0, 1, 2


def keep_freed_memory() -> None:
    """Ask malloc to keep what is freed instead of handing it back: a step's large tensors come again with the next.

    Without this every step pays for their pages anew, a fault each; steps with prompts took twice as long and more.
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
    """Shared memory of all processes: whether the server drains, and how many requests each API process has open."""

    def __init__(self, num_api_processes: int) -> None:
        context = mp.get_context("spawn")
        self._phase = context.Value("i", SERVING)
        self._open = context.Array("i", num_api_processes)

    @property
    def phase(self) -> int:
        return int(self._phase.value)

    @phase.setter
    def phase(self, value: int) -> None:
        self._phase.value = value

    def set_open(self, api_process: int, count: int) -> None:
        self._open[api_process] = count

    @property
    def total_open(self) -> int:
        return sum(list(self._open.get_obj()))


def take_secret(variable: str) -> str | None:
    """Read an environment variable and wipe it out: forked children and ``/proc/PID/environ`` would keep showing it."""
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
    """Hold the home's lock, or say who does."""
    home.mkdir(parents=True, exist_ok=True)
    path = home / "server.lock"
    with path.open("a+") as lock:
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
