"""What a call is: a request described, and how its answer is read.

Endpoints make calls, the clients carry them out. Knows no HTTP library and no particular route.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from graftwork.clients.errors import GraftworkProtocolError
from graftwork.clients.types.generation import Usage

QUICK_TIMEOUT = 30.0  # seconds to wait for an answer that needs no model
SLOW_TIMEOUT = 600.0  # seconds to wait for an answer that the model has to write, or for an adapter to be checked

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
F = TypeVar("F", bound=Callable[..., Any])
ProgressCallback = Callable[[int, int], None]  # bytes sent so far, bytes in all


@dataclass(frozen=True, kw_only=True, slots=True)
class MultipartUpload:
    """Files to send as one multipart form, all as ``field``, read from disk while they are sent."""

    files: tuple[Path, ...]
    fields: Mapping[str, str]
    progress: ProgressCallback | None = None
    field: str = "files"


@dataclass(frozen=True, kw_only=True, slots=True)
class CallRequest:
    """One HTTP request, described. ``accept`` are statuses besides 2xx that carry an answer and not an error;
    ``repeatable``: sent twice it takes effect once, as every GET."""

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
    """What came back: status, headers and the body as text."""

    status: int
    headers: Mapping[str, str]
    text: str

    def json(self) -> Any:
        try:
            return json.loads(self.text)
        except ValueError as error:
            raise GraftworkProtocolError(
                f"the server answered {shorten(self.text)!r}, which is no JSON; is this a Graftwork server?"
            ) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Call(Generic[T]):
    """A request and how to read its answer."""

    request: CallRequest
    read: Callable[[CallResponse], T]


class StreamChunk(Protocol[T_co]):
    """The wire type of one streamed event. ``id`` is the whole answer's."""

    @property
    def id(self) -> str | None: ...

    @property
    def usage(self) -> Usage | None: ...

    def deltas(self) -> Sequence[T_co]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamCall(Generic[T]):
    """A request that is answered by server-sent events, and the wire type of one event's ``data``."""

    request: CallRequest
    chunk: type[StreamChunk[T]]


@dataclass(frozen=True, kw_only=True, slots=True)
class LinesCall(Generic[T]):
    """A request that is answered by JSON lines, and how one of them is read."""

    request: CallRequest
    read: Callable[[bytes], T]


def with_signature_of(describe: Callable[..., Any]) -> Callable[[F], F]:
    """Give a client's method the name, the docstring and the parameters of the endpoint that it carries out."""

    def dress(method: F) -> F:
        signature = inspect.signature(describe)
        self = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        method.__name__, method.__doc__ = describe.__name__, describe.__doc__
        method.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[self, *signature.parameters.values()], return_annotation=inspect.Signature.empty
        )
        return method

    return dress


def shorten(text: str, length: int = 200) -> str:
    """One line of at most ``length`` characters, for quoting in a message."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"
