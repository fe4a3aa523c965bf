"""Helpers for descriptions of calls: paths, queries, bodies, and readers of responses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, TypeVar
from urllib.parse import quote

from graftwork.clients.errors import GraftworkProtocolError, InvalidArgumentError
from graftwork.clients.http.calls import SLOW_TIMEOUT, CallRequest, CallResponse, LinesCall
from graftwork.clients.http.wire import parse

T = TypeVar("T")

Timestamp = datetime | float | str
"""A point in time: a datetime with a time zone, unix seconds, or a text in ISO 8601."""


def path_of(*segments: str) -> str:
    """Build a path ``/v1/…`` from segments, which are quoted.

    Raises:
        InvalidArgumentError: if a segment is empty, ``.`` or ``..``.
    """
    for segment in segments:
        if segment in ("", ".", ".."):
            raise InvalidArgumentError(f"{segment!r} names nothing")
    return "/v1/" + "/".join(quote(segment, safe="@") for segment in segments)


def without_none(**options: Any) -> dict[str, Any]:
    """Return the options that are not None; the server has defaults for the others."""
    return {name: value for name, value in options.items() if value is not None}


def query_of(which: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a filter to query parameters; datetimes become unix seconds."""
    times = {name: value.timestamp() for name, value in which.items() if isinstance(value, datetime)}
    return without_none(**{**which, **times})


def reader_of(kind: type[T]) -> Callable[[CallResponse], T]:
    """Return a function that reads the body of a response as a type."""
    return lambda reply: parse(kind, reply.json())


def export_call(noun: str, which: Mapping[str, Any], kind: type[T]) -> LinesCall[T]:
    """Describe the export of all records of a noun that match a filter; each line is one of a type."""
    request = CallRequest(method="GET", path=path_of(noun, "export"), query=query_of(which), read_timeout=SLOW_TIMEOUT)
    return LinesCall(request=request, read=lambda line: parse(kind, read_line(line)))


def read_line(line: bytes) -> Any:
    """Parse a line of JSON lines.

    Raises:
        GraftworkProtocolError: if it is no JSON.
    """
    try:
        return json.loads(line)
    except ValueError as error:
        raise GraftworkProtocolError(f"there is a line that is no JSON: {line[:200]!r}") from error
