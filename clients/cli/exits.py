"""What the exit codes mean: the one place that says so, for ``--help``, for the commands and for scripts."""

from __future__ import annotations

from enum import IntEnum

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
