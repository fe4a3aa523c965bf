"""One file of a multipart form, written where it belongs while it arrives, and the form's few fields.

Knows nothing of what files are for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Protocol

from anyio import to_thread
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.names import quoted

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

SLACK_BYTES = 1 << 20
"""Boundaries, headers and fields, beside the file."""
_FLUSH_BYTES = 1 << 20
_MAX_FIELD_BYTES = 16 << 10
_MAX_PARTS = 32


class Sink(Protocol):
    def write(self, chunk: bytes, /) -> None: ...


async def receive(request: Request, sink: Sink, *, file: str, fields: Collection[str]) -> tuple[str, dict[str, str]]:
    """The name of the file in the form's field ``file``, whose bytes went into ``sink``, and the other ``fields``.

    InvalidRequest: no such form, a broken one, no file or several, a field of another name.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise InvalidRequest(
            f"send a multipart form with the file as {file!r} and {', '.join(map(repr, fields))}", param=file
        )
    form = _Form(file, fields)
    try:
        parser = MultipartParser(options[b"boundary"], form.callbacks())
        async for chunk in request.stream():
            parser.write(chunk)
            if len(form.pending) >= _FLUSH_BYTES:
                await to_thread.run_sync(sink.write, form.take())
        await to_thread.run_sync(sink.write, form.take())
    except FormParserError as error:
        raise InvalidRequest(f"the multipart body is broken ({error}): send it again") from None
    if not form.complete:
        raise InvalidRequest("the upload ended before its last boundary: send it again")
    if form.filename is None:
        raise InvalidRequest(f"{file} is required: send the file, with its name", param=file)
    return form.filename, form.fields


class _Form:
    def __init__(self, file: str, fields: Collection[str]) -> None:
        self.filename: str | None = None
        self.fields: dict[str, str] = {}
        self.pending = bytearray()
        self.complete = False
        self._file_field = file
        self._known = fields
        self._num_parts = 0
        self._field = ""
        self._in_file = False
        self._value = bytearray()
        self._headers: dict[str, str] = {}
        self._header = bytearray()
        self._header_value = bytearray()

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin_part,
            "on_header_field": self._into(self._header),
            "on_header_value": self._into(self._header_value),
            "on_header_end": self._end_header,
            "on_headers_finished": self._begin_content,
            "on_part_data": self._content,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def take(self) -> bytes:
        """What has come of the file since."""
        taken = bytes(self.pending)
        self.pending.clear()
        return taken

    @staticmethod
    def _into(buffer: bytearray) -> Callable[[bytes, int, int], None]:
        return lambda data, start, end: buffer.extend(data[start:end])

    def _begin_part(self) -> None:
        self._num_parts += 1
        if self._num_parts > _MAX_PARTS:
            raise InvalidRequest(f"the form has more than {_MAX_PARTS} parts: send one file and its fields")
        self._headers.clear()

    def _end_header(self) -> None:
        self._headers[self._header.decode("latin-1").lower()] = self._header_value.decode("latin-1")
        self._header.clear()
        self._header_value.clear()

    def _begin_content(self) -> None:
        _, options = parse_options_header(self._headers.get("content-disposition"))
        field = options.get(b"name", b"").decode(errors="replace")
        filename = options.get(b"filename")
        self._in_file = field == self._file_field
        if self._in_file and filename is None:
            raise InvalidRequest(f"{field} must be a file, with a file name", param=field)
        if not self._in_file and field not in self._known:
            raise InvalidRequest(
                f"{quoted(field)} is not supported here: the form takes {self._file_field}, {', '.join(self._known)}",
                param=field[:64],
                code="unknown_parameter",
            )
        if field in self.fields or (self._in_file and self.filename is not None):
            raise InvalidRequest(f"{field} came twice: send it once", param=field)
        if self._in_file and filename is not None:
            self.filename = filename.decode(errors="replace")
        self._field = field

    def _content(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self.pending += data[start:end]
            return
        self._value += data[start:end]
        if len(self._value) > _MAX_FIELD_BYTES:
            raise InvalidRequest(f"{self._field} is longer than {_MAX_FIELD_BYTES} bytes", param=self._field)

    def _end_part(self) -> None:
        if not self._in_file:
            try:
                self.fields[self._field] = self._value.decode()
            except UnicodeDecodeError:
                raise InvalidRequest(f"{self._field} is not UTF-8", param=self._field) from None
        self._in_file = False
        self._value.clear()

    def _end(self) -> None:
        self.complete = True
