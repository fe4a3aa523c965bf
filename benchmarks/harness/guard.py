"""Runs a command that ends with its owner: ``python guard.py FD SECONDS COMMAND…``.

``FD`` is the read end of a pipe. When its other end is closed, also because the owner died, the command gets SIGTERM,
and after ``SECONDS`` SIGKILL, together with all its descendants: the guard is a subreaper, which inherits orphans. Its
exit code is that of the command. Linux only.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
from functools import partial

import psutil

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def _wait(command: int, owner: int, seconds: float | None = None) -> set[int]:
    """Wait for one of two file descriptors, and return those that are ready: of the command's end, of the owner's."""
    watched = select.poll()
    for descriptor in {command, owner} - {-1}:
        watched.register(descriptor, select.POLLIN | select.POLLHUP)
    return {descriptor for descriptor, _ in watched.poll(None if seconds is None else 1e3 * seconds)}


def _end_all() -> None:
    """Kill all descendants of this process, including those that are started meanwhile."""
    while left := psutil.Process().children(recursive=True):
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=1)


def main(owner: int, patience: float, command: list[str]) -> int:
    """Run the command until it ends, or the owner closes its pipe; return the command's exit code."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    child = subprocess.Popen(command, preexec_fn=partial(_prctl, _PR_SET_PDEATHSIG, signal.SIGKILL))
    ended = os.pidfd_open(child.pid)
    try:
        if ended not in _wait(ended, owner):
            child.terminate()
            _wait(ended, -1, patience)
    finally:
        child.kill()  # nothing happens if it has ended
        code = child.wait()
        _end_all()
    return code


if __name__ == "__main__":
    code = main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
    sys.exit(code if code >= 0 else 128 - code)
