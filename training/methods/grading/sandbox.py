"""A program of its own, started by path: runs the source of a Python grader, with nothing but the standard library.

It reads one JSON object from standard input, ``{"source", "answers": [{"sample", "item"}, …], "seconds", "bytes"}``,
and writes one, ``{"grades": […]}`` or ``{"error": …}``. Before the source runs, the kernel is told to refuse every
system call but those that computing takes (seccomp): no file can be opened, no socket made and no process started,
whatever the source finds in Python. CPU time and memory are bounded. What it may import has been imported before.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import platform
import resource
import signal
import struct
import sys

ALLOWED_MODULES = (
    *("ast", "base64", "bisect", "collections", "copy", "csv", "dataclasses", "datetime", "decimal", "difflib"),
    *("enum", "fractions", "functools", "hashlib", "heapq", "html", "itertools", "json", "math", "operator", "random"),
    *("re", "statistics", "string", "textwrap", "time", "typing", "unicodedata", "urllib.parse"),
)

_LATE_MODULES = ("_strptime", "encodings.cp1252", "encodings.latin_1", "encodings.idna", "encodings.utf_16")
"""What those import when they are used."""

MAX_REPLY_BYTES = 1 << 20
"""What the process may write, to the file that is its standard output."""

_NAMES = (
    *("read", "write", "close", "fstat", "lseek", "mmap", "mprotect", "munmap", "brk", "rt_sigaction"),
    *("rt_sigprocmask", "rt_sigreturn", "mremap", "madvise", "nanosleep", "getpid", "exit", "exit_group"),
    *("sigaltstack", "gettid", "futex", "clock_gettime", "clock_nanosleep", "getrandom", "restart_syscall"),
    *("sched_yield", "gettimeofday"),
)
"""The system calls that computing takes."""

_NUMBERS = {
    "x86_64": (
        0xC000003E,
        (0, 1, 3, 5, 8, 9, 10, 11, 12, 13, 14, 15, 25, 28, 35, 39, 60, 231, 131, 186, 202, 228, 230, 318, 219, 24, 96),
    ),
    "aarch64": (
        0xC00000B7,
        (
            *(63, 64, 57, 80, 62, 222, 226, 215, 214, 134, 135, 139, 216, 233, 101, 172, 93, 94),
            *(132, 178, 98, 113, 115, 278, 128, 124, 169),
        ),
    ),
}
"""By machine: its number in seccomp, and the numbers of `_NAMES`."""

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 1, 22, 38, 2
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_KILL, _REFUSE, _ALLOW = 0x80000000, 0x00050001, 0x7FFF0000


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def lock_down(max_seconds: int, max_bytes: int) -> None:
    """Bound CPU time and memory, and refuse every system call but those that computing takes, for good.

    Raises:
        OSError: The kernel cannot do that, or this is another machine.
    """
    machine = platform.machine()
    if machine not in _NUMBERS:
        raise OSError(f"there is no list of system calls for {machine}")
    for limit, value in (
        (resource.RLIMIT_AS, max_bytes),
        (resource.RLIMIT_CPU, max_seconds),
        (resource.RLIMIT_FSIZE, MAX_REPLY_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    architecture, numbers = _NUMBERS[machine]
    instructions = [(_LOAD, 0, 0, 4), (_JUMP_IF_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    # Each jump goes over those that follow and the refusal behind them.
    instructions += [(_JUMP_IF_EQUAL, len(numbers) - index, 0, number) for index, number in enumerate(numbers)]
    instructions += [(_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)]
    packed = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in instructions))
    program = _Program(len(instructions), ctypes.cast(packed, ctypes.c_void_p))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0),
    ):
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "prctl failed")


def grade(source: str, answers: list[dict[str, object]]) -> list[float]:
    """Run the source, and call its ``grade(sample, item)`` for each answer."""
    import random

    namespace: dict[str, object] = {"__name__": "grader"}
    exec(compile(source, "grader.py", "exec"), namespace)  # noqa: S102 - that is what this process is for
    function = namespace.get("grade")
    if not callable(function):
        raise TypeError("the program has no function grade(sample, item)")
    grades = []
    for answer in answers:
        random.seed(0)
        grades.append(float(function(answer["sample"], answer["item"])))
    return grades


def main() -> None:
    """Answer the question on standard input."""
    question = json.loads(sys.stdin.buffer.read())
    for name in (*ALLOWED_MODULES, *_LATE_MODULES):
        __import__(name)
    output = sys.stdout.fileno()
    sys.stdout = sys.stderr = io.StringIO()  # what the source prints is nobody's
    try:
        lock_down(question["seconds"], question["bytes"])
    except OSError as error:
        reply: dict[str, object] = {"error": f"the process cannot be locked down here ({error})"}
    else:
        try:
            reply = {"grades": grade(question["source"], question["answers"])}
        except BaseException as error:  # of any kind: the source is a stranger's
            reply = {"error": f"{type(error).__name__}: {error}"[:500]}
    os.write(output, json.dumps(reply).encode())
    os._exit(0)


if __name__ == "__main__":
    main()
