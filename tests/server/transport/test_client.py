"""The engine client with a fake worker: real sockets, no engine."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields

import pytest

from graftwork.adapters.errors import Overloaded, Unavailable
from graftwork.server.engine.request import Delta, FinishReason, SamplingParams
from graftwork.server.processes import SharedState
from graftwork.server.transport import client as client_module
from graftwork.server.transport.client import EngineClient
from graftwork.server.transport.messages import (
    Cancel,
    EngineMessage,
    Frame,
    Generate,
    Hello,
    MessageBuffer,
    Stats,
    StatsRequest,
    decode_message,
    encode,
)

GREEDY = SamplingParams(max_tokens=4, temperature=0.0)


class Worker:
    """The other end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._buffer, self._messages = MessageBuffer(), []  # type: ignore[var-annotated]

    def send(self, frame: Frame) -> None:
        self.writer.write(encode(frame))

    async def receive(self) -> EngineMessage:
        while not self._messages:
            self._messages += map(decode_message, self._buffer.feed(await self.reader.read(1 << 16)))
        message: EngineMessage = self._messages.pop(0)
        return message

    def die(self) -> None:
        self.writer.transport.abort()


@pytest.fixture
async def client() -> EngineClient:
    client = EngineClient(SharedState(1), max_open=4, canary_prompt=[1])
    client.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)  # type: ignore[attr-defined]
    client.listener.bind(f"\0graftwork-test-{os.getpid()}-{id(client)}")  # type: ignore[attr-defined]
    client.listener.listen()  # type: ignore[attr-defined]
    await client.listen(0, client.listener)  # type: ignore[attr-defined]
    return client


async def start(client: EngineClient, pid: int = 1) -> Worker:
    address = client.listener.getsockname().decode()  # type: ignore[attr-defined]
    worker = Worker(*await asyncio.open_unix_connection(address))
    worker.send(Frame(hello=Hello(pid, {"quantize": "int8"})))
    async with asyncio.timeout(5):
        while client.state != "ready":
            await asyncio.sleep(0.01)
    return worker


async def test_answers_of_several_choices_in_one_message_each_way(client: EngineClient) -> None:
    assert client.state == "starting"
    with pytest.raises(Unavailable):
        client.open([([1], GREEDY)], adapter=None)
    worker = await start(client)
    stream = client.open([([1, 2], GREEDY), ([3], GREEDY)], adapter="sha256:ab")
    asked = await worker.receive()
    assert isinstance(asked, Generate)
    assert [(r.prompt, r.adapter) for r in asked.requests] == [((1, 2), "sha256:ab"), ((3,), "sha256:ab")]
    assert client.num_open() == 2
    one, two = (request.id for request in asked.requests)
    end = FinishReason.STOP
    worker.send(Frame([Delta(two, [8]), Delta(one, [7])]))
    worker.send(Frame([Delta(one, finish_reason=end), Delta(two, finish_reason=end), Delta("another", [9])]))
    got = [(choice, delta.token_ids) async for choice, delta in stream]
    assert got == [(1, [8]), (0, [7]), (0, []), (1, [])]
    assert client.num_open() == 0


async def test_what_is_cancelled_is_said_once(client: EngineClient) -> None:
    worker = await start(client)
    stream = client.open([([1], GREEDY)] * 3, adapter=None)
    client.cancel(stream, 1)
    client.cancel(stream, 1)
    client.cancel(stream)
    await worker.receive()
    assert await worker.receive() == Cancel([stream.ids[1]])
    assert await worker.receive() == Cancel([stream.ids[0], stream.ids[2]])
    assert client.num_open() == 0


async def test_a_full_queue(client: EngineClient) -> None:
    await start(client)
    client.open([([1], GREEDY)] * 4, adapter=None)
    with pytest.raises(Overloaded):
        client.open([([1], GREEDY)], adapter=None)


def opens(client: EngineClient, tenant: str, count: int = 1, weight: float = 1.0) -> bool:
    try:
        client.open([([1], GREEDY)] * count, adapter=None, tenant=tenant, weight=weight)
    except Overloaded:
        return False
    return True


async def test_a_full_queue_refuses_those_that_have_their_share_of_it(client: EngineClient) -> None:
    client.max_open = 12
    worker = await start(client)
    flood = client.open([([1], GREEDY)] * 12, adapter=None, tenant="flood")
    asked = await worker.receive()
    assert isinstance(asked, Generate)
    assert {(request.tenant, request.weight) for request in asked.requests} == {("flood", 1.0)}
    with pytest.raises(Overloaded, match=r"12 answers are running or waiting for you\. .* takes 12 of you"):
        client.open([([1], GREEDY)], adapter=None, tenant="flood")
    assert opens(client, "small")
    with pytest.raises(Overloaded, match="takes 6 of you"):
        client.open([([1], GREEDY)], adapter=None, tenant="flood")
    assert opens(client, "small", 5)  # a half
    assert not opens(client, "small")
    assert opens(client, "heavy", 5, weight=2.0)
    assert opens(client, "heavy", weight=2.0)  # a half again: 2 of 4
    assert not opens(client, "heavy", weight=2.0)
    client.cancel(flood)
    assert not opens(client, "small")  # two thirds are heavy's now


async def test_in_a_full_queue_there_is_room_for_everybody_who_has_nothing_open(client: EngineClient) -> None:
    await start(client)
    assert opens(client, "flood", 4)
    streams = [client.open([([1], GREEDY)], adapter=None, tenant=str(number)) for number in range(20)]
    assert client.num_open() == 24
    assert not any(opens(client, str(number)) for number in range(20))
    for stream in streams:
        client.cancel(stream)
    assert not opens(client, "flood")


async def test_what_runs_in_the_background_takes_no_users_place(client: EngineClient) -> None:
    await start(client)
    background = client.open([([1], GREEDY)] * 4, adapter=None, background=True)
    users = client.open([([1], GREEDY)] * 4, adapter=None)
    with pytest.raises(Overloaded, match="4 answers"):
        client.open([([1], GREEDY)], adapter=None)
    client.open([([1], GREEDY)], adapter=None, background=True)
    assert (client.num_open(), client.num_background()) == (9, 5)
    client.cancel(background)
    assert (client.num_open(), client.num_background()) == (5, 1)
    client.cancel(users, 0)
    client.open([([1], GREEDY)], adapter=None)


async def test_when_the_worker_dies_its_answers_end_and_the_next_one_serves(client: EngineClient) -> None:
    worker = await start(client)
    stream = client.open([([1], GREEDY)], adapter=None)
    question = asyncio.ensure_future(client.stats())
    await worker.receive()
    assert isinstance(await worker.receive(), StatsRequest)
    worker.die()
    with pytest.raises(Unavailable, match="stopped while it was answering"):
        async for _ in stream:
            pass
    with pytest.raises(Unavailable):
        await question
    assert (client.state, client.num_open()) == ("recovering", 0)
    client.cancel(stream)  # what is over already is nobody's business any more
    await start(client, pid=2)
    assert client.num_restarts == 1


async def test_bytes_that_are_no_frame_end_nothing(client: EngineClient) -> None:
    worker = await start(client)
    stream = client.open([([1], GREEDY)], adapter=None)
    worker.writer.write(b"\0\0\0\x02{]")
    worker.send(Frame([Delta(stream.ids[0], finish_reason=FinishReason.STOP)]))
    assert [delta.done async for _, delta in stream] == [True]


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """Stands for the engine worker's process."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


async def test_an_engine_without_progress_is_killed(
    client: EngineClient, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "GRACE_SECONDS", 0.05)
    watchdog, client._stall_seconds = client._watchdog, 0.2
    watchdog.cancel()
    client._watchdog = asyncio.create_task(client._watch())
    worker = await start(client, process.pid)
    async with asyncio.timeout(10):
        while process.poll() is None:
            await asyncio.sleep(0.05)
    assert process.returncode == -signal.SIGKILL
    worker.die()


async def test_an_engine_that_answers_is_left_alone(client: EngineClient, process: subprocess.Popen[bytes]) -> None:
    client._watchdog.cancel()
    client._stall_seconds = 0.4
    client._watchdog = asyncio.create_task(client._watch())
    worker = await start(client, process.pid)
    stats = Stats(**{field.name: {} if field.name == "adapters" else 0 for field in fields(Stats)})
    for _ in range(5):
        asked = await worker.receive()
        assert isinstance(asked, StatsRequest)
        worker.send(Frame(stats=[(asked.id, stats)]))
    assert process.poll() is None
