"""What descriptions of calls are made of: paths, queries, bodies without what was not given, and readers of answers.

Knows no particular noun.
"""

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
"""With a time zone, unix seconds, or ISO 8601."""


def path_of(*segments: str) -> str:
    """``/v1/…``, each segment quoted. Raises InvalidArgumentError for one that would name something else."""
    for segment in segments:
        if segment in ("", ".", ".."):
            raise InvalidArgumentError(f"{segment!r} names nothing")
    return "/v1/" + "/".join(quote(segment, safe="@") for segment in segments)


def without_none(**options: Any) -> dict[str, Any]:
    """Those that are not None: what is left out is the server's choice."""
    return {name: value for name, value in options.items() if value is not None}


def query_of(which: Mapping[str, Any]) -> dict[str, Any]:
    """A filter as a query. Moments travel as unix seconds, or as the text that they were given as."""
    moments = {name: value.timestamp() for name, value in which.items() if isinstance(value, datetime)}
    return without_none(**{**which, **moments})


def reader_of(kind: type[T]) -> Callable[[CallResponse], T]:
    """Reads an answer that is one ``kind``."""
    return lambda reply: parse(kind, reply.json())


def export_call(noun: str, which: Mapping[str, Any], kind: type[T]) -> LinesCall[T]:
    """All rows of a noun, a ``kind`` a line."""
    request = CallRequest(method="GET", path=path_of(noun, "export"), query=query_of(which), read_timeout=SLOW_TIMEOUT)
    return LinesCall(request=request, read=lambda line: parse(kind, _decoded(line)))


def _decoded(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise GraftworkProtocolError(f"the export has a line that is no JSON: {line[:200]!r}") from error
