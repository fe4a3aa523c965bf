"""What proxies speak: HTTP/1.0, which knows no chunks, and HEAD."""

from __future__ import annotations

import json
import socket
from typing import Any

import httpx

from tests.e2e.server_process import BASE, Server

BODY = {"model": BASE, "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0, "ignore_eos": True}


def exchange(server: Server, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[str, bytes]:
    """A request of HTTP/1.0, with what is answered until the server closes the connection: the head, and the body."""
    content = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Length: {len(content)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=60) as connection:
        connection.sendall(head.encode() + content)
        answer = b""
        while data := connection.recv(65536):
            answer += data
    said, _, rest = answer.partition(b"\r\n\r\n")
    return said.decode().lower(), rest


def test_a_stream_over_http_1_0_is_not_chunked(server: Server) -> None:
    head, body = exchange(server, "POST", "/v1/completions", {**BODY, "stream": True})
    assert "text/event-stream" in head
    assert "transfer-encoding" not in head
    assert "connection: close" in head
    events = body.decode().strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    streamed = "".join(json.loads(event[6:])["choices"][0]["text"] for event in events[:-1])
    _, whole = exchange(server, "POST", "/v1/completions", BODY)
    assert streamed == json.loads(whole)["choices"][0]["text"]
    with httpx.stream("POST", f"{server.url}/v1/completions", json={**BODY, "stream": True}) as modern:
        assert modern.headers["transfer-encoding"] == "chunked"
        assert len(modern.read().decode().strip().split("\n\n")) == len(events)


def test_whole_answers_over_http_1_0(server: Server) -> None:
    head, body = exchange(server, "GET", "/health")
    assert (f"content-length: {len(body)}" in head, json.loads(body)) == (True, {"status": "ok"})
    head, body = exchange(server, "POST", "/v1/completions", {"model": BASE})
    assert head.startswith("http/1.1 400")
    assert json.loads(body)["error"]["param"] == "prompt"


def test_head_has_the_headers_of_get(server: Server) -> None:
    with httpx.Client(base_url=server.url) as client:
        for path in ("/", "/health", "/ready", "/version", "/v1/models", "/v1/interactions/export", "/openapi.json"):
            got, head = client.get(path), client.head(path)
            assert (head.status_code, head.content) == (200, b"")
            assert got.headers["content-type"] == head.headers["content-type"]
            assert got.headers.get("content-length") == head.headers.get("content-length")
    head, body = exchange(server, "HEAD", "/health")
    assert head.startswith("http/1.1 200")
    assert body == b""
