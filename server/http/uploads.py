"""Receives a multipart form with one file and a few fields."""

from __future__ import annotations

from collections.abc import Collection

from starlette.requests import Request

from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.names import quoted
from graftwork.server.http import multipart
from graftwork.server.http.multipart import Part, Sink

SLACK_BYTES = 1 << 20
"""Allowance for boundaries, headers and fields beside the file."""

_LIMITS = multipart.FormLimits(max_parts=32, max_field_bytes=16 << 10, hint="one file and its fields")


async def receive_file(
    request: Request, sink: Sink, *, file: str, fields: Collection[str]
) -> tuple[str, dict[str, str]]:
    """Parse a form with one file.

    Args:
        request: Its body is not read yet.
        sink: Receives the file's bytes.
        file: The field of the file.
        fields: Other fields that are allowed.

    Returns:
        The file's name, and the other fields.

    Raises:
        InvalidRequest: There is no such form, it is malformed, it has no file or several, or an unknown field.
    """
    is_form, boundary = multipart.boundary_of(request.headers.get("content-type"))
    if not is_form or not boundary:
        raise InvalidRequest(
            f"send a multipart form with the file as {file!r} and {', '.join(map(repr, fields))}", param=file
        )
    filename: str | None = None

    def open_part(part: Part) -> Sink | None:
        nonlocal filename
        if part.field != file:
            if part.field not in fields:
                raise InvalidRequest(
                    f"{quoted(part.field)} is not supported here: the form takes {file}, {', '.join(fields)}",
                    param=part.field[:64],
                    code="unknown_parameter",
                )
            return None
        if part.filename is None:
            raise InvalidRequest(f"{file} must be a file, with a file name", param=file)
        if filename is not None:
            raise InvalidRequest(f"{file} came twice: send it once", param=file)
        filename = part.filename
        return sink

    values = await multipart.receive_form(request.stream(), boundary, open_part, limits=_LIMITS)
    if filename is None:
        raise InvalidRequest(f"{file} is required: send the file, with its name", param=file)
    return filename, values
