"""What a server's errors mean, whatever form they have."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from graftwork.server.transport.vllm.server import NotServed, Refused, UnknownModel, VllmServer


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (401, {"json": {"error": "Unauthorized"}}, Refused, "Unauthorized"),
        (400, {"json": {"error": {"message": "too long"}}}, Refused, "too long"),
        (404, {"json": {"error": {"message": "no such model", "param": "model"}}}, UnknownModel, "no such model"),
        (404, {"json": {"detail": "Not Found"}}, Refused, "it answered 404"),
        (403, {"json": "not from here"}, Refused, "not from here"),
        (403, {"json": None}, Refused, "it answered 403"),
        (502, {"json": ["a", "proxy"]}, NotServed, r"\['a', 'proxy'\]"),
        (502, {"text": "<html>"}, NotServed, "it answered 502"),
        (429, {"json": {"error": None}}, NotServed, "it answered 429"),
    ],
)
async def test_an_error(status: int, body: dict[str, Any], kind: type[Exception], message: str) -> None:
    server = VllmServer("http://vllm")
    server._connections = httpx.AsyncClient(
        base_url=server.url, transport=httpx.MockTransport(lambda _: httpx.Response(status, **body))
    )
    with pytest.raises(kind, match=message) as caught:
        await server.get("/v1/models")
    assert type(caught.value) is kind
    await server.close()


async def test_an_error_within_a_stream_that_is_a_string() -> None:
    server = VllmServer("http://vllm")
    events = httpx.MockTransport(lambda _: httpx.Response(200, content=b'data: {"error": "out of memory"}\n\n'))
    server._connections = httpx.AsyncClient(base_url=server.url, transport=events)
    with pytest.raises(NotServed, match="out of memory"):
        await anext(server.stream({}))
    await server.close()
