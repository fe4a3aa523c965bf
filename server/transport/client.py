"""The API process's end of the connection to the engine worker.

The worker connects to this process's socket and sends its hello. When it dies the kernel closes the connection: every
open stream ends with an error at once, new requests are answered 503, and the next worker's hello makes this process
ready again. All methods must be called in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

from graftwork.adapters.errors import Unavailable
from graftwork.adapters.peft_format.spec import AdapterSpec
from graftwork.server.engine.request import Request, SamplingParams
from graftwork.server.processes import SERVING, STOPPING, SharedState
from graftwork.server.transport.canary import try_adapter
from graftwork.server.transport.engine import EngineState, EngineStream, check_room
from graftwork.server.transport.messages import (
    AdapterState,
    Cancel,
    EngineMessage,
    Frame,
    Generate,
    Hello,
    MessageBuffer,
    Stats,
    StatsRequest,
    decode_frame,
    encode,
)

log = logging.getLogger(__name__)

#: An engine that was silent for too long is asked once more, for so many seconds: perhaps this process stood still.
GRACE_SECONDS = 5.0


class Connection(Protocol):
    """A connection to one engine."""

    def send(self, message: EngineMessage) -> None:
        """Send a message, without waiting."""

    def close(self) -> None:
        """Close the connection at once."""


class EngineClient:
    """The gateway's client of the engine worker; implements ``EngineProtocol``.

    Args:
        shared_state: Receives the number of open answers; has the server's phase.
        max_open: The most answers of this process that users may have running or waiting at once; more only where a
            tenant is still below its share of them.
        canary_prompt: Token ids that adapters are tried on.
        stall_seconds: An engine that answers nothing for so long is killed, so that another is started.
        listeners: For each API process the socket on which it accepts the worker.
        engine: The number of the worker, from 0, among those of this server.

    Attributes:
        base_card: How the base was loaded; empty before the first hello.
        num_restarts: How often the engine was started again.
    """

    def __init__(
        self,
        shared_state: SharedState,
        *,
        max_open: int,
        canary_prompt: Sequence[int],
        stall_seconds: float = 60.0,
        listeners: Sequence[socket.socket] = (),
        engine: int = 0,
    ) -> None:
        self.base_card: Mapping[str, Any] = {}
        self.num_restarts = 0
        self.max_open = max_open
        self._shared_state = shared_state
        self._canary_prompt = tuple(canary_prompt)
        self._api_process = 0
        self._stall_seconds = stall_seconds
        self._listeners = listeners
        self._engine = engine
        self._connection: Connection | None = None
        self._worker_pid = 0
        self._was_ready = False
        self._streams: dict[str, tuple[EngineStream, int]] = {}
        self._stats_futures: dict[str, asyncio.Future[Stats]] = {}
        self._numbers = itertools.count()

    async def start(self, api_process: int) -> None:
        """Accept the engine worker in one of the API processes."""
        await self.listen(api_process, self._listeners[api_process])

    async def stop(self) -> None:
        """Do nothing: connections end with the process."""

    async def listen(self, api_process: int, listener: socket.socket) -> None:
        """Accept engine workers on a listening socket and watch them, until the event loop ends."""
        self._api_process = api_process
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: WorkerConnection(self), sock=listener)
        self._watchdog = loop.create_task(self._watch())

    async def _watch(self) -> None:
        """Kill an engine worker that makes no progress: a stopped process keeps its connections open for ever."""
        while True:
            await asyncio.sleep(self._stall_seconds / 4)
            watched = self._connection
            if watched is None or self.state != "ready":
                continue
            if await self._answers(self._stall_seconds) or await self._answers(GRACE_SECONDS):
                continue
            if watched is self._connection:
                log.error(
                    "engine worker %d has made no progress for %.0f s: it is killed, and another one is started",
                    self._worker_pid,
                    self._stall_seconds,
                )
                os.kill(self._worker_pid, signal.SIGKILL)

    async def _answers(self, seconds: float) -> bool:
        """Whether the engine answers within so many seconds, or is gone."""
        try:
            await self.stats(timeout=seconds)
        except Unavailable as error:
            return error.code != "busy"
        return True

    # -- state ---------------------------------------------------------------------------------------------------
    @property
    def state(self) -> EngineState:
        """Whether requests are taken, or why not."""
        if self._shared_state.phase != SERVING:
            return "draining"
        if self._connection is not None:
            return "ready"
        return "recovering" if self._was_ready else "starting"

    @property
    def max_choices(self) -> int:
        """How many answers one request may have."""
        return self.max_open

    def num_open(self) -> int:
        """Answers that are under way in all API processes."""
        return self._shared_state.num_open(self._engine)

    def num_background(self) -> int:
        """Answers under way that no user of this process waits for."""
        return sum(stream.background for stream, _ in self._streams.values())

    def _ready_connection(self) -> Connection:
        state = self.state
        if state == "ready" and self._connection is not None:
            return self._connection
        messages = {
            "starting": "The base is still loading; try again in a few seconds.",
            "recovering": "The engine stopped and is being started again; try again in a few seconds.",
            "draining": "This server is shutting down.",
        }
        raise Unavailable(messages.get(state, "Not ready."), code=state)

    # -- requests ------------------------------------------------------------------------------------------------
    def open(
        self,
        work: Sequence[tuple[Sequence[int], SamplingParams]],
        *,
        adapter: str | None,
        cache_salt: str = "",
        background: bool = False,
        tenant: str = "",
        weight: float = 1.0,
    ) -> EngineStream:
        """Send the choices of one request to the engine.

        Args:
            work: For each choice the prompt's token ids and the sampling.
            adapter: The digest of a published adapter; ``None``: the bare base.
            cache_salt: Prompts of another salt share no prefixes with it.
            background: Whether no user waits for it: it is not counted among ``max_open``.
            tenant: Who asks: tenants share the engine and its queue fairly.
            weight: The tenant's share, beside the weights of other tenants.

        Raises:
            InvalidRequest: There are more choices than this server takes at all.
            Overloaded: The queue is full, and the tenant has its share of it.
            Unavailable: There is no engine at the moment.
        """
        connection = self._ready_connection()
        check_room(
            [stream for stream, _ in self._streams.values()],
            len(work),
            self.max_open,
            tenant=tenant,
            weight=weight,
            background=background,
        )
        ids = [f"{self._api_process}-{next(self._numbers)}" for _ in work]
        stream = EngineStream(ids, background, tenant, weight)
        requests = [
            Request(
                id=request_id,
                prompt=tuple(prompt),
                sampling=sampling,
                adapter=adapter,
                cache_salt=cache_salt,
                tenant=tenant,
                weight=weight,
            )
            for request_id, (prompt, sampling) in zip(stream.ids, work, strict=True)
        ]
        self._streams.update({request_id: (stream, choice) for choice, request_id in enumerate(stream.ids)})
        stream.open.update(stream.ids)
        connection.send(Generate(requests))
        self._publish_num_open()
        return stream

    def cancel(self, stream: EngineStream, choice: int | None = None) -> None:
        """Stop one choice, or all. Choices that have ended are not affected."""
        ids = [i for i in (stream.ids if choice is None else [stream.ids[choice]]) if i in stream.open]
        if not ids:
            return
        stream.open.difference_update(ids)
        for request_id in ids:
            del self._streams[request_id]
        if self._connection is not None:
            self._connection.send(Cancel(ids))
        self._publish_num_open()

    def takes(self, spec: AdapterSpec) -> None:
        """Accept every adapter that ``read_spec`` accepts; the canary finds what does not work."""

    async def ensure(self, digest: str) -> None:
        """Have an adapter on the device: one token is scored with it.

        Raises:
            Unavailable: There is no engine at the moment, or it was lost.
        """
        score = SamplingParams(max_tokens=0, temperature=0.0)
        stream = self.open([(self._canary_prompt[:1], score)], adapter=digest, background=True)
        try:
            async for _ in stream:
                pass
        finally:
            self.cancel(stream)

    async def release(self, digest: str) -> None:
        """Do nothing: the worker looks for no folder of an adapter that nobody asks for."""

    async def canary(self, digest: str) -> None:
        """Compute one prompt with and without an adapter, and compare: see ``try_adapter``."""
        await try_adapter(self, self._canary_prompt, digest)

    async def stats(self, *, timeout: float = 5.0) -> Stats:
        """Ask the engine for its statistics.

        Args:
            timeout: Seconds to wait for them.

        Raises:
            Unavailable: There is no engine, or it does not answer in time.
        """
        connection = self._ready_connection()
        stats_id = f"q{self._api_process}-{next(self._numbers)}"
        answer: asyncio.Future[Stats] = asyncio.get_running_loop().create_future()
        self._stats_futures[stats_id] = answer
        connection.send(StatsRequest(stats_id))
        try:
            async with asyncio.timeout(timeout):  # before Python 3.12 wait_for may lose a cancellation
                stats = await answer
        except TimeoutError:
            raise Unavailable("The engine is too busy to say how it is.", code="busy") from None
        finally:
            self._stats_futures.pop(stats_id, None)
        return stats

    async def residency(self) -> Mapping[str, AdapterState]:
        """The state of every adapter that is in memory, by digest; empty while there is no engine."""
        if self._connection is None:
            return {}
        return (await self.stats()).adapters

    # -- from the worker -----------------------------------------------------------------------------------------
    def receive(self, connection: Connection, frame: Frame) -> None:
        """Handle a frame: pass deltas to their streams. An engine's first frame carries its hello."""
        if frame.hello is not None:
            self._on_hello(connection, frame.hello)
        if connection is not self._connection:
            return
        for delta in frame.deltas:
            entry = self._streams.get(delta.request_id)
            if entry is None:
                continue
            stream, choice = entry
            stream.items.put_nowait((choice, delta))
            if delta.done:
                del self._streams[delta.request_id]
                stream.open.discard(delta.request_id)
        for stats_id, stats in frame.stats:
            if (future := self._stats_futures.get(stats_id)) is not None and not future.done():
                future.set_result(stats)
        self._publish_num_open()

    def lose(self, connection: Connection) -> None:
        """Handle the loss of a connection: every open answer ends with an error at once."""
        if connection is not self._connection:
            return
        if self._shared_state.phase != STOPPING:
            log.error("the engine worker died; its %d open answers end with an error", len(self._streams))
        again = "It is being started again; ask again in a few seconds."
        self._disconnect(
            f"The engine stopped while it was answering. {again}"
            if self._shared_state.phase == SERVING
            else "The server is shutting down and waits no longer for this answer."
        )

    def _on_hello(self, connection: Connection, hello: Hello) -> None:
        if self._connection is not None:
            self._connection.close()
            self._disconnect("The engine was started again.")
        self._connection, self.base_card, self._worker_pid = connection, hello.card, hello.pid
        self.num_restarts += self._was_ready
        self._was_ready = True
        log.info("engine worker %d is ready", hello.pid)

    def _disconnect(self, why: str) -> None:
        self._connection = None
        error = Unavailable(why, code="engine_lost")
        for stream in {stream for stream, _ in self._streams.values()}:
            stream.open.clear()
            stream.items.put_nowait(error)
        self._streams.clear()
        for future in self._stats_futures.values():
            if not future.done():
                future.set_exception(error)
        self._publish_num_open()

    def _publish_num_open(self) -> None:
        self._shared_state.set_open(self._api_process, self._engine, len(self._streams))


class WorkerConnection(asyncio.Protocol):
    """The connection of one engine worker, for ``EngineClient``; the kernel closes it when the worker is killed."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client
        self._buffer = MessageBuffer()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept the peer if it runs as the same user."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by class
        if peer_uid(transport.get_extra_info("socket")) != os.getuid():
            log.warning("a connection that is not the engine worker's was refused")
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Decode frames and pass them to the client."""
        for body in self._buffer.feed(data):
            try:
                self._client.receive(self, decode_frame(body))
            except Exception:  # one frame that cannot be handled must not end all answers
                log.exception("a frame from the engine could not be taken in")

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the client."""
        self._client.lose(self)

    def send(self, message: EngineMessage) -> None:
        """See ``Connection.send``."""
        assert self._transport is not None
        self._transport.write(encode(message))

    def close(self) -> None:
        """See ``Connection.close``."""
        if self._transport is not None:
            self._transport.abort()


def peer_uid(connection: socket.socket) -> int:
    """The user id of the process at the other end of a Unix socket."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])
