"""The exit codes of commands, and their interruption by signals."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType
from typing import NoReturn

from graftwork.clients.errors import (
    AuthenticationError,
    ForbiddenError,
    GraftworkClientError,
    GraftworkConnectionError,
    InvalidArgumentError,
    NotFoundError,
    SettingsError,
)


class ExitCode(IntEnum):
    """The exit codes, with their meaning as ``--help`` shows it."""

    meaning: str

    def __new__(cls, code: int, meaning: str) -> ExitCode:
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member

    OK = 0, "done"
    FAILED = 1, "refused or failed"
    USAGE = 2, "wrong usage"
    UNREACHABLE = 3, "no server reached"
    NOT_FOUND = 4, "no such thing"
    UNAUTHORIZED = 5, "key missing or not allowed"
    NOT_BETTER = 6, "the demo's second version did not win"
    INTERRUPTED = 130, "interrupted"


SUMMARY = "Exit codes: " + " · ".join(f"{code.value} {code.meaning}" for code in ExitCode) + "."


def exit_code(error: GraftworkClientError) -> ExitCode:
    """Return the exit code for an error of the client."""
    match error:
        case GraftworkConnectionError():
            return ExitCode.UNREACHABLE
        case NotFoundError():
            return ExitCode.NOT_FOUND
        case AuthenticationError() | ForbiddenError():
            return ExitCode.UNAUTHORIZED
        case SettingsError() | InvalidArgumentError():
            return ExitCode.USAGE
        case _:
            return ExitCode.FAILED


class CommandInterrupted(KeyboardInterrupt):
    """Raised by Ctrl-C or SIGTERM in a command, which then ends in order.

    It is a type of its own because a plain KeyboardInterrupt that passes through ``exec``, as when a dataclass is
    created, later makes Python end by the signal, whatever the exit code of the command.
    """


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Raise `CommandInterrupted` for Ctrl-C and SIGTERM in the block. Signals that are ignored stay ignored."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise CommandInterrupted

    meant = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in meant}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
