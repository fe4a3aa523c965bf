"""Parses a multipart form while it arrives: files are written where the caller says, the few fields are returned."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from anyio import to_thread
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from graftwork.adapters.errors import InvalidRequest

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_FLUSH_BYTES = 1 << 20


class Sink(Protocol):
    """Receives a file's bytes."""

    def write(self, chunk: bytes, /) -> Any:
        """Write some bytes. May block: it is called in a thread."""


@dataclass(frozen=True, slots=True)
class Part:
    """The headers of one part.

    Attributes:
        field: The form field's name.
        filename: ``None`` if it is no file.
        headers: By name in lower case.
    """

    field: str
    filename: str | None
    headers: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class FormLimits:
    """Limits of a form.

    Attributes:
        max_parts: The most parts.
        max_field_bytes: The largest field that is no file.
        hint: For the error message: what to send instead of more parts.
    """

    max_parts: int
    max_field_bytes: int
    hint: str


def boundary_of(content_type: str | None) -> tuple[bool, bytes]:
    """Whether a content type is a multipart form, and its boundary, empty if it has none."""
    kind, options = parse_options_header(content_type)
    return kind == b"multipart/form-data", options.get(b"boundary", b"")


async def receive_form(
    stream: AsyncIterable[bytes],
    boundary: bytes,
    open_part: Callable[[Part], Sink | None],
    *,
    limits: FormLimits,
    work: Callable[..., Awaitable[Any]] = to_thread.run_sync,
) -> dict[str, str]:
    """Parse a form.

    Args:
        stream: The request's body.
        boundary: As ``boundary_of`` returned it.
        open_part: Returns where a file's bytes go, ``None`` for a field. What it raises ends the form.
        limits: Of the form.
        work: Calls a blocking function in a thread.

    Returns:
        The fields that are no files.

    Raises:
        InvalidRequest: The form is malformed, incomplete, beyond its limits, or has a field twice.
    """
    form = _Form(open_part, limits)
    try:
        parser = MultipartParser(boundary, form.callbacks())
        async for chunk in stream:
            parser.write(chunk)
            if form.pending_bytes >= _FLUSH_BYTES:
                await work(form.flush)
        await work(form.flush)
    except FormParserError as error:
        raise InvalidRequest(f"the multipart body is broken ({error}): send it again") from None
    if not form.complete:
        raise InvalidRequest("the upload ended before its last boundary: send it again")
    return form.fields


class _Form:
    """The callbacks of python-multipart's parser."""

    def __init__(self, open_part: Callable[[Part], Sink | None], limits: FormLimits) -> None:
        self.fields: dict[str, str] = {}
        self.pending_bytes = 0
        self.complete = False
        self._open_part = open_part
        self._limits = limits
        self._pending: list[tuple[Sink, bytes]] = []
        self._num_parts = 0
        self._sink: Sink | None = None
        self._field = ""
        self._value = bytearray()
        self._headers: dict[str, str] = {}
        self._header = bytearray()
        self._header_value = bytearray()

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin_part,
            "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._header_value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._begin_content,
            "on_part_data": self._content,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def flush(self) -> None:
        """Write what has arrived to the sinks."""
        pending, self._pending, self.pending_bytes = self._pending, [], 0
        for sink, chunk in pending:
            sink.write(chunk)

    def _begin_part(self) -> None:
        self._num_parts += 1
        if self._num_parts > self._limits.max_parts:
            raise InvalidRequest(f"the form has more than {self._limits.max_parts} parts: send {self._limits.hint}")
        self._headers = {}

    def _end_header(self) -> None:
        self._headers[self._header.decode("latin-1").lower()] = self._header_value.decode("latin-1")
        self._header.clear()
        self._header_value.clear()

    def _begin_content(self) -> None:
        _, options = parse_options_header(self._headers.get("content-disposition"))
        field = options.get(b"name", b"").decode(errors="replace")
        filename = options.get(b"filename")
        part = Part(field, None if filename is None else filename.decode(errors="replace"), self._headers)
        self._sink = self._open_part(part)
        if self._sink is None and field in self.fields:
            raise InvalidRequest(f"{field} came twice: send it once", param=field)
        self._field = field

    def _content(self, data: bytes, start: int, end: int) -> None:
        if self._sink is not None:
            self._pending.append((self._sink, data[start:end]))
            self.pending_bytes += end - start
            return
        self._value += data[start:end]
        if len(self._value) > self._limits.max_field_bytes:
            raise InvalidRequest(
                f"{self._field} is longer than {self._limits.max_field_bytes} bytes", param=self._field
            )

    def _end_part(self) -> None:
        if self._sink is None:
            try:
                self.fields[self._field] = self._value.decode()
            except UnicodeDecodeError:
                raise InvalidRequest(f"{self._field} is not UTF-8", param=self._field) from None
        self._sink = None
        self._value.clear()

    def _end(self) -> None:
        self.complete = True
