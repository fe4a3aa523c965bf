"""Clients that disconnect: the engine stops computing their answers at once."""

from __future__ import annotations

import http.client
import json
import socket
import time

import httpx
import pytest

from tests.e2e.requests import PROMPT, OpenStream, ask
from tests.e2e.server_process import BASE, Server, eventually

BODY = {"model": BASE, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 4000, "ignore_eos": True}
SOON = 5.0


def idle(server: Server) -> bool:
    return server.metric("running") == server.metric("queue_depth") == server.metric("cache_tokens") == 0


@pytest.mark.usefixtures("adapters")
def test_streams_that_are_left(server: Server) -> None:
    with server.openai() as client:
        streams = [OpenStream(client, model) for model in (BASE, "intents", "cards")]
        for stream in streams:
            stream.wait_until_begun()
        assert server.metric("running") == 3
        for stream in streams:
            stream.leave()
    eventually(lambda: idle(server), SOON, "the engine stops computing what nobody reads")


def test_several_choices_are_left_together(server: Server) -> None:
    with httpx.Client(timeout=60) as client:
        with client.stream("POST", f"{server.url}/v1/chat/completions", json={**BODY, "stream": True, "n": 4}):
            eventually(lambda: server.metric("running") == 4, SOON, "four choices run")
        eventually(lambda: idle(server), SOON, "all of them stop")


def test_an_answer_nobody_waits_for(server: Server) -> None:
    """Not streamed: the client just hangs up."""
    with httpx.Client() as client, pytest.raises(httpx.ReadTimeout):
        client.post(f"{server.url}/v1/chat/completions", json=BODY, timeout=1)
    eventually(lambda: idle(server), SOON, "the engine stops")


def test_a_connection_that_breaks(server: Server) -> None:
    """No goodbye: the socket is reset in the middle of a stream, and another one in the middle of its request."""
    raw = json.dumps({**BODY, "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(raw)}\r\n\r\n".encode()
    port = int(server.url.rpartition(":")[2])
    for sent in (head + raw, head + raw[:20], head[:30]):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(sent)
            if sent == head + raw:
                assert b"data:" in connection.recv(65536) + connection.recv(65536)
            # Linger of zero: a reset instead of an end.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    eventually(lambda: idle(server), SOON, "the engine stops")
    with server.openai() as client:
        assert ask(client, BASE, max_tokens=1).text


def test_a_connection_that_idles_stays(server: Server) -> None:
    """Longer than any client keeps one: closed by the server at the moment of the next request, it would break that."""
    connection = http.client.HTTPConnection("127.0.0.1", int(server.url.rpartition(":")[2]), timeout=10)
    connection.auto_open = 0
    connection.connect()
    for pause in (6, 0):
        connection.request("GET", "/health")
        assert connection.getresponse().read()
        time.sleep(pause)
    connection.close()
