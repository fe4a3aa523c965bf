"""What the exit codes mean, and how a command is stopped: the one place that says so, for ``--help`` and scripts."""

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
    """The code that a command ends with after an error."""
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
    """Ctrl-C or SIGTERM, in a command that then ends in order.

    A type of its own: where a plain KeyboardInterrupt went through an ``exec`` of text, as when a dataclass is made,
    Python ends by the signal later, whatever exit code the command has chosen.
    """


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Within it Ctrl-C and SIGTERM raise `Stopped`. A signal that is ignored stays so."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise CommandInterrupted

    meant = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in meant}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
