"""The parts of the transport that both clients share: addresses, requests, errors, and the decision to retry.

Nothing here waits or does network I/O; the clients do.
"""

from __future__ import annotations

import contextlib
import io
import ipaddress
import json
import os
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from graftwork.clients.errors import (
    GraftworkAPIError,
    GraftworkConnectionError,
    GraftworkTimeoutError,
    LocalFileError,
    SettingsError,
    error_class,
)
from graftwork.clients.http.calls import CallRequest, MultipartUpload, shorten
from graftwork.version import __version__

DEFAULT_URL = "http://127.0.0.1:8000"
CONNECT_TIMEOUT = 5.0  # seconds
MAX_RETRY_DELAY = 30.0  # seconds; if the server asks for a longer delay, its error is raised
FIRST_BACKOFF = 0.2  # seconds, doubled with each retry
# Servers and proxies close idle connections, Uvicorn and httpx by default after five seconds. A request that is sent at
# that moment fails, and it is unknown whether it took effect. So idle connections are closed earlier here.
CONNECTION_LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=3.0)

AttemptResult = httpx.Response | httpx.RequestError


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionSettings:
    """The settings of a client.

    Attributes:
        url: address of the server, without ``/v1``.
        api_key: the API key.
        max_retries: number of retries after the first attempt.
        read_timeout: replaces the timeout of each call, in seconds.
    """

    url: str
    api_key: str | None = field(repr=False)
    max_retries: int
    read_timeout: float | None

    @classmethod
    def resolve(
        cls, url: str | None, api_key: str | None, max_retries: int, read_timeout: float | None
    ) -> ConnectionSettings:
        """Build the settings, with defaults from ``GRAFTWORK_URL`` and ``GRAFTWORK_API_KEY``.

        Raises:
            SettingsError: if the URL or the key is invalid.
        """
        # The base_url of the openai client, which ends in /v1, is accepted, too.
        wanted = (url or os.environ.get("GRAFTWORK_URL") or DEFAULT_URL).strip().rstrip("/").removesuffix("/v1")
        try:
            parsed = httpx.URL(wanted)
        except httpx.InvalidURL as error:
            raise SettingsError(f"{wanted!r} is no URL: {error}") from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise SettingsError(f"{wanted!r} is no server's URL; write it like {DEFAULT_URL}")
        key = (api_key or os.environ.get("GRAFTWORK_API_KEY") or "").strip()
        if not (key.isascii() and key.isprintable()):
            raise SettingsError("the API key holds characters that no key has; was the right file read?")
        return cls(url=wanted, api_key=key or None, max_retries=max_retries, read_timeout=read_timeout)

    def http_options(self) -> dict[str, Any]:
        """Return the arguments for ``httpx.Client`` and ``httpx.AsyncClient``."""
        headers = {"user-agent": f"graftwork/{__version__}"}
        if self.api_key:
            headers["authorization"] = f"Bearer {self.api_key}"
        # A proxy from the environment cannot reach the loopback interface of this machine.
        return {
            "headers": headers,
            "limits": CONNECTION_LIMITS,
            "trust_env": not _is_loopback(httpx.URL(self.url).host),
        }

    @contextlib.contextmanager
    def open_request(self, request: CallRequest) -> Iterator[dict[str, Any]]:
        """Yield the arguments for httpx's ``build_request``. The files of an upload are open for the block.

        Raises:
            LocalFileError: if a file cannot be read.
        """
        read_timeout = request.read_timeout and (self.read_timeout or request.read_timeout)
        arguments: dict[str, Any] = {
            "method": request.method,
            "url": self.url + request.path,
            "params": request.query or None,
            "headers": request.headers,
            "timeout": httpx.Timeout(read_timeout, connect=CONNECT_TIMEOUT),
        }
        with contextlib.ExitStack() as opened:
            if request.json is not None:
                arguments["json"] = request.json
            if request.upload is not None:
                arguments["data"] = request.upload.fields
                arguments["files"] = _open(request.upload, opened)
            yield arguments

    def response_or_delay(self, request: CallRequest, outcome: AttemptResult, attempt: int) -> httpx.Response | float:
        """Decide whether an attempt succeeded, is retried, or fails.

        Idempotent requests are retried after connection errors (except timeouts) and statuses 429, 502, 503 and 504.
        All requests are retried after 429 or 503 with ``Retry-After``, since these had no effect.

        Args:
            request: the request.
            outcome: the response, or the error of httpx.
            attempt: number of the attempt, from 0.

        Returns:
            The response, or the time in seconds after which to retry.

        Raises:
            GraftworkClientError: if the request failed and is not retried.
        """
        if isinstance(outcome, httpx.Response) and (
            outcome.is_success or outcome.status_code in request.accepted_statuses
        ):
            return outcome
        error = self.connection_error(outcome) if isinstance(outcome, httpx.RequestError) else _api_error(outcome)
        if attempt >= self.max_retries:
            raise error
        wait = _requested_delay(outcome)
        if wait is None and (request.method == "GET" or request.idempotent) and _is_transient(outcome):
            wait = FIRST_BACKOFF * 2**attempt
        if wait is None or wait > MAX_RETRY_DELAY:
            raise error
        return wait * (1 + random.random() / 4)  # jitter, so that many clients do not retry at the same time

    def connection_error(self, error: httpx.RequestError) -> GraftworkConnectionError:
        """Return the error for one of httpx, of a request or of a stream that broke."""
        # Its message has the cause: the traceback of httpx is not useful to users.
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return GraftworkConnectionError(
                f"no Graftwork server answers at {self.url} ({shorten(str(error)) or 'timed out'}). "
                "Start one with `graftwork serve`, or name another: url=…, --url or GRAFTWORK_URL.",
                url=self.url,
            )
        if isinstance(error, httpx.TimeoutException):
            return GraftworkTimeoutError(f"{self.url} did not answer in time; it may be busy or stuck.", url=self.url)
        return GraftworkConnectionError(
            f"the connection to {self.url} broke ({shorten(str(error)) or type(error).__name__}). "
            "Whether the request took effect is not known.",
            url=self.url,
        )

    def cut_off_error(self) -> GraftworkConnectionError:
        """Return the error for a stream that ended without its end marker."""
        return GraftworkConnectionError(f"{self.url} broke the answer off before its end.", url=self.url)


def _open(upload: MultipartUpload, opened: contextlib.ExitStack) -> list[tuple[str, tuple[str, io.FileIO, str]]]:
    try:
        counter = _UploadProgress(upload)
        return [
            (upload.field, (path.name, opened.enter_context(_CountedFile(path, counter)), "application/octet-stream"))
            for path in upload.files
        ]
    except OSError as error:
        raise LocalFileError(f"cannot read {error.filename}: {error.strerror}") from error


class _UploadProgress:
    """Counts the bytes that were read from all files of an attempt."""

    def __init__(self, upload: MultipartUpload) -> None:
        self._report = upload.progress
        self._total = sum(path.stat().st_size for path in upload.files) if upload.progress else 0
        self._sent = 0

    def add(self, num_bytes: int) -> None:
        if self._report is not None and num_bytes:
            self._sent += num_bytes
            self._report(self._sent, self._total)


class _CountedFile(io.FileIO):
    """A file that counts the bytes read. httpx reads it in chunks of 64 KiB while sending."""

    def __init__(self, path: Path, counter: _UploadProgress) -> None:
        super().__init__(path, "rb")
        self._counter = counter

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(-1 if size is None else size)
        self._counter.add(len(data))
        return data


def _requested_delay(outcome: AttemptResult) -> float | None:
    """Return the ``Retry-After`` of a request that was refused before it was processed, in seconds; None without."""
    if isinstance(outcome, httpx.Response) and outcome.status_code in (429, 503):
        return _retry_after(outcome)
    return None


def _is_transient(outcome: AttemptResult) -> bool:
    """Whether the same request may succeed soon."""
    if isinstance(outcome, httpx.Response):
        return outcome.status_code in (429, 502, 503, 504)
    return not isinstance(outcome, httpx.TimeoutException)


def _retry_after(response: httpx.Response) -> float | None:
    try:
        seconds = float(response.headers["retry-after"])
    except (KeyError, ValueError):  # a date is allowed too; Graftwork sends seconds
        return None
    return seconds if seconds >= 0 else None


def _api_error(response: httpx.Response) -> GraftworkAPIError:
    """Build the error of a response, from OpenAI's error body or else from its text."""
    status = response.status_code
    fields = error_body(response.text)
    return error_class(status)(
        fields.get("message") or f"HTTP {status} {response.reason_phrase}: {shorten(response.text) or 'no body'}",
        status=status,
        type=fields.get("type"),
        param=fields.get("param"),
        code=fields.get("code"),
        request_id=response.headers.get("x-request-id"),
        retry_after=_retry_after(response),
    )


def error_body(text: str) -> Mapping[str, Any]:
    """Return the object under ``error`` in a body; an empty one if the body does not have that form."""
    try:
        body = json.loads(text)
    except ValueError:
        return {}
    fields = body.get("error") if isinstance(body, dict) else None
    return fields if isinstance(fields, dict) else {}


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
