"""What the scripts share: where the server is, and how a feature is tried and reported.

Runs in each client's own environment, so it needs nothing but the standard library.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import traceback
from collections.abc import Awaitable, Callable
from contextlib import redirect_stdout
from typing import TypeVar

URL = os.environ.get("CONFORMANCE_URL", "http://127.0.0.1:8000")
BASE_URL = f"{URL}/v1"
API_KEY = os.environ.get("CONFORMANCE_API_KEY", "none")
MODEL = os.environ.get("CONFORMANCE_MODEL", "smollm2-135m-instruct")

Error = TypeVar("Error", bound=Exception)
Feature = Callable[[], Awaitable[str | None] | str | None]

_FEATURES: dict[str, Feature] = {}

#: One for all, as in a program: connections live as long as it does.
_LOOP = asyncio.Runner()


def feature(name: str) -> Callable[[Feature], Feature]:
    """The function tries this feature. What it returns is told beside "ok"; it raises if the server has none."""

    def register(function: Feature) -> Feature:
        _FEATURES[name] = function
        return function

    return register


def raised(
    call: Callable[[], object], expected: type[Error], is_right: Callable[[Error], bool] = lambda error: True
) -> str:
    """The name of the class that ``call`` raises, which must be ``expected`` and, as an error, right."""
    try:
        call()
    except expected as error:
        return _named(error, is_right(error))
    raise AssertionError("no error was raised")


async def raised_async(call: Awaitable[object], expected: type[Exception]) -> str:
    """See :func:`raised`."""
    try:
        await call
    except expected as error:
        return _named(error, True)
    raise AssertionError("no error was raised")


def _named(error: Exception, is_right: bool) -> str:
    if not is_right:
        raise error
    return type(error).__name__


def main() -> None:
    """Tell in a line of JSON which features there are, then try those that are named as arguments; a line for each."""
    print(json.dumps({"features": list(_FEATURES)}), flush=True)
    for name in [name for name in _FEATURES if name in sys.argv[1:]]:
        with redirect_stdout(sys.stderr):  # clients print, too
            ok, detail = _try(_FEATURES[name])
        print(json.dumps({"feature": name, "ok": ok, "detail": detail}), flush=True)


def _try(function: Feature) -> tuple[bool, str]:
    try:
        outcome = function()
        return True, (_LOOP.run(_wait(outcome)) if isinstance(outcome, Awaitable) else outcome) or ""
    except Exception as error:
        traceback.print_exc()
        return False, f"{type(error).__name__}: {error}"


async def _wait(outcome: Awaitable[str | None]) -> str | None:
    return await outcome
