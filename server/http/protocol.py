"""Uvicorn's HTTP protocol, with answers that clients of HTTP/1.0 can read.

Uvicorn sends a body of unknown length in chunks, which HTTP/1.0 does not have. There the end of such a body is the end
of the connection. Proxies speak HTTP/1.0 to servers, nginx by default.
"""

from __future__ import annotations

from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        super()._start_asgi_task(cycle, _unchunked(cycle, app) if cycle.scope["http_version"] == "1.0" else app)


def _unchunked(cycle: RequestResponseCycle, app: ASGI3Application) -> ASGI3Application:
    """``app`` with answers to the request of ``cycle`` that are not chunked; after each of them the connection ends."""

    async def answer(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        is_unbounded = False

        async def send_plainly(message: ASGISendEvent) -> None:
            nonlocal is_unbounded
            if message["type"] == "http.response.start":
                is_unbounded = not any(name.lower() == b"content-length" for name, _ in message["headers"])
                if is_unbounded:
                    cycle.chunked_encoding = False
            elif message["type"] == "http.response.body" and is_unbounded:
                # Uvicorn holds bodies to the length that was announced, and of this one none was.
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, send_plainly)

    return answer
