"""The lines of a batch's files: requests in the input file, answers and errors in the output and error files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from graftwork.adapters.errors import GraftworkError, InvalidRequest
from graftwork.server.bodies import Label, StrictModel, parse, short_repr, write_json


class _InputLine(StrictModel):
    custom_id: Annotated[Label, Field(min_length=1)]
    method: str
    url: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """One request of a batch.

    Attributes:
        line: Of the input file, from 1.
        custom_id: The client's name for it.
        body: As it would be sent to the endpoint.
    """

    line: int
    custom_id: str
    body: bytes


def read_request(line: int, raw: bytes, endpoint: str) -> BatchRequest:
    """Parse a line of an input file. Its body is looked at when it is answered.

    Raises:
        InvalidRequest: It is no request of a batch for ``endpoint``.
    """
    try:
        read = parse(_InputLine, raw, whole="the line")
    except InvalidRequest as error:
        code = "invalid_json_line" if error.code == "invalid_json" else error.code
        raise InvalidRequest(error.message, param=error.param, code=code) from None
    if read.method != "POST":
        raise InvalidRequest(f"method must be POST, not {short_repr(read.method)}", param="method")
    if read.url != endpoint:
        raise InvalidRequest(
            f"url must be {endpoint}, the endpoint of the batch, not {short_repr(read.url)}: make a batch for each "
            "endpoint",
            param="url",
            code="invalid_url",
        )
    if read.body.get("stream") is True:
        raise InvalidRequest(
            "body.stream is not supported: a batch's answers are written to a file, leave it out",
            param="body.stream",
            code="unsupported_parameter",
        )
    return BatchRequest(line, read.custom_id, write_json(read.body))


def response_line(batch_id: str, request: BatchRequest, status: int, request_id: str, body: bytes) -> str:
    """The line of a request that was answered.

    Args:
        batch_id: Of its batch.
        request: The request.
        status: Of the answer.
        request_id: Of the answer.
        body: Of the answer, JSON: what the endpoint would have sent.
    """
    head = write_json({"id": _id(batch_id, request), "custom_id": request.custom_id})
    response = write_json({"status_code": status, "request_id": request_id})
    line = head[:-1] + b',"response":' + response[:-1] + b',"body":' + body + b'},"error":null}'
    return line.decode()


def error_response_line(batch_id: str, request: BatchRequest, request_id: str, error: GraftworkError) -> str:
    """The line of a request that was answered with an error."""
    return response_line(batch_id, request, error.status, request_id, write_json(error.body()))


def unanswered_line(batch_id: str, request: BatchRequest, error: Mapping[str, str]) -> str:
    """The line of a request that was not answered; ``error`` has a ``code`` and a ``message``."""
    members = {"id": _id(batch_id, request), "custom_id": request.custom_id, "response": None, "error": dict(error)}
    return write_json(members).decode()


def _id(batch_id: str, request: BatchRequest) -> str:
    # Made of what is known, so that a file that is written again after a kill has the same lines.
    return f"batch_req_{batch_id.removeprefix('batch_')}_{request.line}"
