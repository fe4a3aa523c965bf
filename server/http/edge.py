"""Middleware and error handlers around all routes.

Every request gets a request id, a limit on its body and an entry in the metrics, and every change one in the audit log.
Every error has one shape: ours, FastAPI's, and unexpected ones, which are logged with their traceback and returned
without it. ``HEAD`` is answered wherever ``GET`` is.

A route that takes more than JSON raises ``request.state.max_body_bytes`` before it reads.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
import zlib
from collections.abc import Sequence
from functools import partial
from http import HTTPStatus
from typing import Any

from anyio import to_thread
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import OperationalError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from graftwork.adapters.access import audit
from graftwork.adapters.access.audit import AuditLog, Change
from graftwork.adapters.access.scope import entered
from graftwork.adapters.errors import (
    GraftworkError,
    InvalidRequest,
    LimitExceeded,
    NotFound,
    Overloaded,
    TooLarge,
    Unavailable,
)
from graftwork.server.anthropic import errors as anthropic
from graftwork.server.observability.metrics import Metrics

log = logging.getLogger(__name__)

MAX_JSON_BYTES = 8 << 20
MAX_PACKED_INLINE = 1024  # bytes of packed bodies that are unpacked on the event loop
ANTHROPIC_PATH = "/v1/messages"
MAX_CLIENT_WAIT_SECONDS = 60  # as long as OpenAI's client waits before it asks again
CLIENT_CLOSED_REQUEST = 499  # nginx's status for a client that left: for metrics, it is never sent

#: What pages of other sites may read of an answer's headers.
EXPOSED_HEADERS = (
    *("x-request-id", "retry-after"),
    *(f"x-ratelimit-{what}-{of}" for of in ("requests", "tokens") for what in ("limit", "remaining", "reset")),
    *("x-graftwork-adapter", "x-graftwork-experiment", "x-graftwork-arm", "x-graftwork-ask-feedback"),
)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_UNAVAILABLE_RETRY_SECONDS = 1


def install(app: FastAPI, metrics: Metrics, audit_log: AuditLog, cors_origins: Sequence[str] = ()) -> None:
    """Add middleware and error handlers to ``app``, before its first request."""
    app.add_middleware(EdgeMiddleware, metrics=metrics, audit_log=audit_log)
    if cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
        )
    app.add_exception_handler(GraftworkError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_parameter)
    app.add_exception_handler(HTTPException, _on_http_exception)


def error_response(error: GraftworkError, path: str = "") -> Response:
    """The response for an error, with headers that tell OpenAI's client when to retry, and when not to.

    Routes of Anthropic's API have errors of its shape.
    """
    headers: dict[str, str] = {}
    if isinstance(error, LimitExceeded):
        headers |= error.headers
    if isinstance(error, LimitExceeded) and error.never:
        headers["x-should-retry"] = "false"
    elif isinstance(error, Overloaded):
        # OpenAI's client waits no longer than a minute: it would ask again in vain.
        if error.retry_after > MAX_CLIENT_WAIT_SECONDS:
            headers["x-should-retry"] = "false"
        headers["retry-after"] = str(error.retry_after)
    elif error.status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["retry-after"] = str(_UNAVAILABLE_RETRY_SECONDS)
    elif error.status == HTTPStatus.CONFLICT:
        headers["x-should-retry"] = "false"
    elif error.status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = 'Bearer realm="graftwork"'
    body = anthropic.body_of(error) if path.startswith(ANTHROPIC_PATH) else error.body()
    return JSONResponse(body, status_code=error.status, headers=headers)


class EdgeMiddleware:
    """Pure ASGI middleware, so that streams pass through unbuffered."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, audit_log: AuditLog) -> None:
        self.app = app
        self._metrics = metrics
        self._audit_log = audit_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        state = scope.setdefault("state", {})
        state["request_id"] = request_id = _request_id(scope)
        state["max_body_bytes"] = MAX_JSON_BYTES
        status = 0
        if scope["method"] == "HEAD":
            # A copy: the server that sends the answer must still see the request for what it is.
            scope, send = {**scope, "method": "GET"}, _bodiless(send)

        async def stamped_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if (change := state.get("change")) is not None:
                    await self._end_change(change, status)
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            # What the request's key enters, its scope and the change that it makes, ends with the request.
            with entered(None), audit.entered():
                await self.app(scope, _limited(scope, receive), stamped_send)
        except ClientDisconnect:
            status = CLIENT_CLOSED_REQUEST
        except _HeadersSent:
            pass
        except Exception:
            log.exception("request %s, %s %s, failed", request_id, scope["method"], scope["path"])
            if status:  # too late for another answer: only closing the connection tells the client
                raise
            error = GraftworkError(f"the server failed at this request; its log says why, under {request_id}")
            await error_response(error, scope["path"])(scope, receive, stamped_send)
        finally:
            self._metrics.request_answered(
                route=getattr(scope.get("route"), "path", "unknown"),
                status=status,
                adapter=state.get("adapter"),
                seconds=time.perf_counter() - began,
            )

    async def _end_change(self, change: Change, status: int) -> None:
        """Have the audit log complete before an answer says that something was changed."""
        try:
            await to_thread.run_sync(self._audit_log.end, change, status)
        except (Unavailable, OperationalError) as error:
            if status < HTTPStatus.BAD_REQUEST:
                raise
            log.error("the audit log lacks %s by %s, answered with %d: %s", change.action, change.actor, status, error)


class _HeadersSent(Exception):
    """The answer to ``HEAD`` is complete, and there is more to come that nobody wants."""


def _bodiless(send: Send) -> Send:
    """``send`` for an answer without its body. A stream is ended with its first piece."""

    async def headers_only(message: Message) -> None:
        if message["type"] == "http.response.start":
            await send(message)
            await send({"type": "http.response.body", "body": b""})
        elif message.get("more_body"):
            raise _HeadersSent

    return headers_only


def _limited(scope: Scope, receive: Receive) -> Receive:
    """``receive`` that raises ``TooLarge`` for a body beyond the route's limit; at once if the length is declared."""
    num_bytes = 0
    headers = Headers(scope=scope)
    declared, encoding = headers.get("content-length", ""), headers.get("content-encoding", "")
    unpacker: zlib._Decompress | None = None

    async def limited() -> Message:
        nonlocal num_bytes, encoding, unpacker
        limit = scope["state"]["max_body_bytes"]
        if num_bytes == 0 and declared.isdecimal() and int(declared[:20]) > limit:
            raise _too_large(limit)
        if encoding:
            unpacker, encoding = _unpacker(encoding), ""
        message = await receive()
        if unpacker is not None and message["type"] == "http.request":
            # No more than a byte beyond the limit is unpacked, whatever a small body says it holds.
            packed, last = message.get("body", b""), not message.get("more_body", False)
            unpack = partial(_unpack, unpacker, packed, limit + 1 - num_bytes, last=last)
            # A kilobyte may hold a megabyte, which takes some milliseconds.
            body = unpack() if len(packed) <= MAX_PACKED_INLINE else await to_thread.run_sync(unpack)
            message = {**message, "body": body}
        num_bytes += len(message.get("body", b""))
        if num_bytes > limit:
            raise _too_large(limit)
        return message

    return limited


def _unpacker(encoding: str) -> zlib._Decompress | None:
    """What unpacks a body with this ``Content-Encoding``; ``None`` for one that is not packed."""
    match encoding.strip().lower():
        case "" | "identity":
            return None
        case "gzip" | "x-gzip":
            return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        case "deflate":
            return zlib.decompressobj()
    raise InvalidRequest(
        f"bodies with the content encoding {encoding[:32]!r} are not read: send gzip, deflate or plain JSON",
        code="unsupported_content_encoding",
    )


def _unpack(unpacker: zlib._Decompress, packed: bytes, most: int, *, last: bool) -> bytes:
    try:
        body = unpacker.decompress(packed, most)
    except zlib.error as error:
        raise InvalidRequest(f"the body cannot be unpacked: {error}", code="invalid_content_encoding") from None
    if len(body) < most and ((last and not unpacker.eof) or unpacker.unused_data):
        raise InvalidRequest(
            "the packed body is cut off, or followed by something else", code="invalid_content_encoding"
        )
    return body


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body is larger than the {limit} bytes that this route takes: send less")


def _request_id(scope: Scope) -> str:
    """The caller's own id, so that logs on both sides can be joined, or a new one."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, GraftworkError)
    if error.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("request %s failed: %s", request.state.request_id, error.message, exc_info=error)
    return error_response(error, request.url.path)


async def _on_invalid_parameter(request: Request, error: Exception) -> Response:
    """Handle a path or query parameter that FastAPI refused."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    param = str(first["loc"][-1])[:64]
    if first["type"] == "extra_forbidden":
        return error_response(
            InvalidRequest(f"{param!r} is no parameter of this route: remove it", param=param, code="unknown_parameter")
        )
    return error_response(InvalidRequest(f"the parameter {param} is wrong: {first['msg'].lower()}", param=param))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path[:128]}"
    if error.status_code == HTTPStatus.NOT_FOUND:
        unknown = NotFound(f"there is no route {where}: check the address", code="unknown_url")
        return error_response(unknown, request.url.path)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = Headers(error.headers).get("allow", "another method")
        message = f"there is no route {where}: this address takes {allowed}"
    else:
        message = str(error.detail)
    kind = GraftworkError.type if error.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR else InvalidRequest.type
    body: dict[str, Any] = {
        "error": {"message": message, "type": kind, "param": None, "code": _code(error.status_code)}
    }
    if request.url.path.startswith(ANTHROPIC_PATH):
        body = anthropic.error_body(error.status_code, message)
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)


def _code(status: int) -> str:
    """An error code from a status: ``method_not_allowed`` for 405."""
    return HTTPStatus(status).phrase.lower().replace(" ", "_").replace("-", "_")
