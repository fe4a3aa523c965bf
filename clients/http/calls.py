"""Calls: the description of a request, and how its response is read. Endpoints build calls, and clients run them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from graftwork.clients.errors import GraftworkProtocolError
from graftwork.clients.types.generation import Usage

QUICK_TIMEOUT = 30.0  # seconds, for requests that do not run the model
SLOW_TIMEOUT = 600.0  # seconds, for requests that run the model or check an adapter

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
F = TypeVar("F", bound=Callable[..., Any])
ProgressCallback = Callable[[int, int], None]  # bytes sent so far, bytes in all


@dataclass(frozen=True, kw_only=True, slots=True)
class MultipartUpload:
    """Files that are sent as a multipart form and streamed from disk.

    Attributes:
        files: the files.
        fields: other fields of the form.
        progress: called with the bytes sent so far and the total.
        field: the field name of all files.
    """

    files: tuple[Path, ...]
    fields: Mapping[str, str]
    progress: ProgressCallback | None = None
    field: str = "files"


@dataclass(frozen=True, kw_only=True, slots=True)
class CallRequest:
    """The description of an HTTP request.

    Attributes:
        method: the HTTP method.
        path: the path, with ``/v1``.
        query: query parameters.
        json: the JSON body.
        headers: additional headers.
        upload: files to send in place of a JSON body.
        accepted_statuses: statuses besides 2xx that are not errors.
        idempotent: whether it may be sent again after a connection error, as every GET may.
        read_timeout: time to wait for data, in seconds; None waits without limit.
    """

    method: str
    path: str
    query: Mapping[str, str | int | float] = field(default_factory=dict)
    json: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    upload: MultipartUpload | None = None
    accepted_statuses: frozenset[int] = frozenset()
    idempotent: bool = False
    read_timeout: float | None = QUICK_TIMEOUT


@dataclass(frozen=True, kw_only=True, slots=True)
class CallResponse:
    """A response: status, headers and the body as text."""

    status: int
    headers: Mapping[str, str]
    text: str

    def json(self) -> Any:
        """Parse the body as JSON.

        Raises:
            GraftworkProtocolError: if it is not JSON.
        """
        try:
            return json.loads(self.text)
        except ValueError as error:
            raise GraftworkProtocolError(
                f"the server answered {shorten(self.text)!r}, which is no JSON; is this a Graftwork server?"
            ) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Call(Generic[T]):
    """A request, and the function that reads its response."""

    request: CallRequest
    read: Callable[[CallResponse], T]


class StreamChunk(Protocol[T_co]):
    """The type of a streamed event's data."""

    @property
    def id(self) -> str | None:
        """The id of the whole answer."""

    @property
    def usage(self) -> Usage | None:
        """The token counts, in the last event."""

    def deltas(self) -> Sequence[T_co]:
        """Return what the event adds to each choice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamCall(Generic[T]):
    """A request that is answered by server-sent events, and the type of an event's data."""

    request: CallRequest
    chunk: type[StreamChunk[T]]


@dataclass(frozen=True, kw_only=True, slots=True)
class LinesCall(Generic[T]):
    """A request that is answered by JSON lines, and the function that reads a line."""

    request: CallRequest
    read: Callable[[bytes], T]


def with_signature_of(describe: Callable[..., Any]) -> Callable[[F], F]:
    """Return a decorator that gives a method of a client the name, docstring and parameters of an endpoint."""

    def decorate(method: F) -> F:
        signature = inspect.signature(describe)
        self = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        method.__name__, method.__doc__ = describe.__name__, describe.__doc__
        method.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[self, *signature.parameters.values()], return_annotation=inspect.Signature.empty
        )
        return method

    return decorate


def shorten(text: str, length: int = 200) -> str:
    """Shorten a text to one line of at most ``length`` characters, for messages."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"
