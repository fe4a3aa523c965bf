"""One vLLM server: the routes that are asked of it, and what its answers mean."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final

import httpx
import pydantic_core

GENERATE: Final = "/inference/v1/generate"
LOAD: Final = "/v1/load_lora_adapter"
UNLOAD: Final = "/v1/unload_lora_adapter"

CONNECT_SECONDS: Final = 5.0
CALL_SECONDS: Final = 120.0  # a large adapter is read from a shared disk meanwhile

#: How long an unused connection is kept: less than the five seconds after which vLLM closes it.
KEEP_SECONDS: Final = 2.0


class NotServed(Exception):
    """A server did not answer, whatever its status said: it is gone, full, or about to stop. Another one may.

    Attributes:
        status: The HTTP status, or the one of an error within an answer; ``None``: the connection failed or broke, or
            the answer was aborted or ended without saying why.
        timed_out: Whether it only said nothing for too long.
    """

    def __init__(self, message: str, *, status: int | None = None, timed_out: bool = False) -> None:
        super().__init__(message)
        self.message = message.rstrip(".")
        self.status = status
        self.timed_out = timed_out


class Refused(Exception):
    """A server will not do this, now or later: the request is wrong (4xx)."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


class UnknownModel(Refused):
    """A server does not know the model that was named: it was unloaded, or the server was started again."""


class VllmServer:
    """The HTTP interface of one server.

    Args:
        url: ``http://host:port``.
        key: What it was started with as ``--api-key``.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url = url
        self._headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self._connections: httpx.AsyncClient | None = None

    def connect(self) -> None:
        """Prepare connections; they belong to the event loop that runs."""
        self._connections = httpx.AsyncClient(
            base_url=self.url,
            headers=self._headers,
            timeout=httpx.Timeout(CALL_SECONDS, connect=CONNECT_SECONDS, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=KEEP_SECONDS),
            verify=self.url.startswith("https:"),
            trust_env=False,  # no proxy stands between a gateway and its engines
        )

    async def close(self) -> None:
        """Close all connections; answers under way are aborted there."""
        connections, self._connections = self._connections, None  # nothing that is cut now is sent again
        if connections is not None:
            await connections.aclose()

    async def get(self, path: str, *, seconds: float = CALL_SECONDS) -> httpx.Response:
        """Ask a route. See ``post`` for what is raised."""
        return await self._call("GET", path, None, seconds)

    async def post(self, path: str, body: dict[str, Any], *, seconds: float = CALL_SECONDS) -> httpx.Response:
        """Send JSON to a route.

        Raises:
            NotServed: The server is gone, failed, or does not want it now.
            Refused: It does not want it at all; of which ``UnknownModel`` is one.
        """
        return await self._call("POST", path, body, seconds)

    async def is_healthy(self) -> bool:
        """Whether it says that its engine lives. One that is about to stop says so, too."""
        try:
            await self.get("/health", seconds=CONNECT_SECONDS)
        except (NotServed, Refused):
            return False
        return True

    async def generate(self, body: dict[str, Any]) -> dict[str, Any]:
        """A whole answer. Raises as ``post`` does; it may take any time."""
        response = await self._call("POST", GENERATE, body, None)
        answer: dict[str, Any] = pydantic_core.from_json(response.content)
        return answer

    async def stream(self, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The events of an answer as they come. Leaving early aborts it there. Raises as ``post`` does."""
        async with aclosing(self._events(body)) as events:
            async for event in events:
                answer: dict[str, Any] = pydantic_core.from_json(event)
                if "error" in answer:
                    error = _error_of(answer)
                    raise NotServed(str(error.get("message") or "it failed"), status=error.get("code"))
                yield answer

    async def _events(self, body: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        """The data of server-sent events, but for ``[DONE]``, which comes after errors as well."""
        try:
            async with self._asked("POST", GENERATE, body, None) as response:
                if response.status_code != httpx.codes.OK:
                    await response.aread()
                    _check(response)
                rest = b""
                async for received in response.aiter_bytes():
                    *events, rest = (rest + received).split(b"\n\n")
                    for event in events:
                        data = event.removeprefix(b"data: ")
                        if data != event and data != b"[DONE]":
                            yield data
        except httpx.TransportError as error:
            raise NotServed(f"the connection to {self.url} broke ({type(error).__name__})") from error

    async def _call(self, method: str, path: str, body: dict[str, Any] | None, seconds: float | None) -> httpx.Response:
        try:
            async with self._asked(method, path, body, seconds) as response:
                await response.aread()
        except httpx.TransportError as error:
            timed_out = isinstance(error, httpx.TimeoutException)
            raise NotServed(f"{self.url} cannot be reached ({type(error).__name__})", timed_out=timed_out) from error
        _check(response)
        return response

    @asynccontextmanager
    async def _asked(
        self, method: str, path: str, body: dict[str, Any] | None, seconds: float | None
    ) -> AsyncIterator[httpx.Response]:
        """Send a request, and once more if its connection breaks before the answer begins.

        A server closes connections that were not used for a while, maybe at the very moment at which one is used again:
        that is no sign of its death. Nothing that is asked here does harm when it is done twice.
        """
        timeout = httpx.Timeout(seconds, connect=CONNECT_SECONDS)
        request = self._client.build_request(method, path, json=body, timeout=timeout)
        try:
            response = await self._client.send(request, stream=True)
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
            response = await self._client.send(request, stream=True)
        try:
            yield response
        finally:
            await response.aclose()

    @property
    def _client(self) -> httpx.AsyncClient:
        if self._connections is None:
            raise NotServed(f"there is no connection to {self.url} yet")
        return self._connections


def _error_of(body: object) -> dict[str, Any]:
    """What a body says of an error: vLLM sends an object, of a wrong key only a string, and a proxy anything."""
    error = body.get("error") if isinstance(body, dict) else body
    return error if isinstance(error, dict) else {"message": error}


def _check(response: httpx.Response) -> None:
    """Raise what an error status means."""
    status = response.status_code
    if status < 400:
        return
    try:
        error = _error_of(response.json())
    except ValueError:
        error = {}
    message = str(error.get("message") or f"it answered {status}")
    if status == 404 and error.get("param") == "model":
        raise UnknownModel(message, status=status)
    if status >= 500 or status == 429:
        raise NotServed(message, status=status)
    raise Refused(message, status=status)
