"""An API process's end of the line to the engine worker: open streams, questions, and what to do when the worker dies.

The worker's pid comes with its hello. The kernel tells us through a pidfd the moment it dies: every open stream ends
with an error at once, new requests are answered 503, and the next worker's hello makes us ready again.

All methods belong to the event loop's thread. Knows LitServe only through the ``send`` it is given.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from graftwork.adapters.errors import InvalidAdapter, InvalidRequest, Overloaded, Unavailable
from graftwork.server.engine.request import Delta, FinishReason, Request, SamplingParams
from graftwork.server.processes import SERVING, STOPPING, SharedState
from graftwork.server.transport.messages import (
    AdapterState,
    Cancel,
    EngineMessage,
    Frame,
    Generate,
    Hello,
    Stats,
    StatsRequest,
)

log = logging.getLogger(__name__)

EngineState = Literal["starting", "ready", "recovering", "draining"]

#: Log-probabilities that differ by no more than this are the same answer: what batching leaves of float32.
INERT_LOGPROB_DIFFERENCE = 1e-6


@dataclass(eq=False, slots=True)
class EngineStream:
    """The deltas of one request's choices as they come. Item: (choice, delta), or the error that ended them all."""

    ids: list[str]
    items: asyncio.Queue[tuple[int, Delta] | Exception] = field(default_factory=asyncio.Queue)
    open: set[str] = field(default_factory=set)

    async def __aiter__(self) -> AsyncIterator[tuple[int, Delta]]:
        """Until every choice has ended. Raises Unavailable when the worker dies."""
        ended = 0
        while ended < len(self.ids):
            item = await self.items.get()
            if isinstance(item, Exception):
                raise item
            ended += item[1].done
            yield item


class EngineClient:
    def __init__(self, board: SharedState, *, max_open: int, canary_prompt: Sequence[int]) -> None:
        self.card: Mapping[str, Any] = {}
        self.num_restarts = 0
        self.max_open = max_open
        self._board = board
        self._canary_prompt = tuple(canary_prompt)
        self._api_process = 0
        self._send: Callable[[EngineMessage], None] | None = None
        self._epoch: str | None = None
        self._was_ready = False
        self._pidfd: int | None = None
        self._streams: dict[str, tuple[EngineStream, int]] = {}
        self._questions: dict[str, asyncio.Future[Any]] = {}
        self._numbers = itertools.count()

    def connect(self, api_process: int, send: Callable[[EngineMessage], None]) -> None:
        """Called once in the API process, before the first frame."""
        self._api_process = api_process
        self._send = send

    # -- state ---------------------------------------------------------------------------------------------------
    @property
    def state(self) -> EngineState:
        if self._board.phase != SERVING:
            return "draining"
        if self._epoch is not None:
            return "ready"
        return "recovering" if self._was_ready else "starting"

    @property
    def base_card(self) -> Mapping[str, Any]:
        return self.card

    def num_open(self) -> int:
        """Answers that are under way, of all API processes."""
        return self._board.total_open

    def _check_ready(self) -> str:
        state = self.state
        if state == "ready" and self._epoch is not None:
            return self._epoch
        say = {
            "starting": "The base is still loading; try again in a few seconds.",
            "recovering": "The engine stopped and is being started again; try again in a few seconds.",
            "draining": "This server is shutting down.",
        }
        raise Unavailable(say.get(state, "Not ready."), code=state)

    # -- requests ------------------------------------------------------------------------------------------------
    def open(self, work: Sequence[tuple[Sequence[int], SamplingParams]], *, adapter: str | None) -> EngineStream:
        """Send one request's choices, each (prompt, sampling), to the engine.

        Raises:
            Overloaded: the queue is full.
            Unavailable: there is no engine at the moment.
        """
        epoch = self._check_ready()
        if len(work) > self.max_open:
            raise InvalidRequest(
                f"The request asks for {len(work)} answers at once; this server takes {self.max_open}. Send several.",
                param="n",
            )
        if len(self._streams) + len(work) > self.max_open:
            raise Overloaded(
                f"{len(self._streams)} answers are running or waiting, which is all this server takes. Try again soon.",
                retry_after=1,
            )
        stream = EngineStream([f"{self._api_process}-{next(self._numbers)}" for _ in work])
        for choice, (request_id, (prompt, sampling)) in enumerate(zip(stream.ids, work, strict=True)):
            self._streams[request_id] = (stream, choice)
            stream.open.add(request_id)
            self._send_message(
                Generate(epoch, Request(id=request_id, prompt=tuple(prompt), sampling=sampling, adapter=adapter))
            )
        self._publish_num_open()
        return stream

    def cancel(self, stream: EngineStream, choice: int | None = None) -> None:
        """Stop one choice, or all; what has ended already stays ended."""
        ids = stream.ids if choice is None else [stream.ids[choice]]
        for request_id in [i for i in ids if i in stream.open]:
            stream.open.discard(request_id)
            del self._streams[request_id]
            if self._epoch is not None:
                self._send_message(Cancel(self._epoch, request_id))
        self._publish_num_open()

    async def canary(self, digest: str) -> None:
        """Answer the same prompt with and without an adapter and compare.

        Raises:
            InvalidAdapter: it cannot be loaded, changes nothing, or makes the model's output infinite.
        """
        ask = SamplingParams(max_tokens=1, temperature=0.0, top_logprobs=0, prompt_logprobs=0)
        streams = [self.open([(self._canary_prompt, ask)], adapter=adapter) for adapter in (None, digest)]
        try:
            plain, grafted = [await _canary_logprobs(stream) for stream in streams]
        finally:
            for stream in streams:
                self.cancel(stream)
        if max(abs(a - b) for a, b in zip(plain, grafted, strict=True)) <= INERT_LOGPROB_DIFFERENCE:
            raise InvalidAdapter(
                "The adapter changes no answer: with it and without it the base says the same. "
                "Its B matrices are probably still zero; was it trained, and saved after training?",
                code="inert_adapter",
            )

    async def stats(self, *, timeout: float = 5.0) -> Stats:
        epoch = self._check_ready()
        question = f"q{self._api_process}-{next(self._numbers)}"
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._questions[question] = answer
        self._send_message(StatsRequest(epoch, question, "stats"))
        try:
            stats: Stats = await asyncio.wait_for(answer, timeout)
        except TimeoutError:
            raise Unavailable("The engine is too busy to say how it is.", code="busy") from None
        finally:
            self._questions.pop(question, None)
        return stats

    async def residency(self) -> Mapping[str, AdapterState]:
        """Where each adapter is; empty while there is no engine."""
        if self.state not in ("ready", "draining") or self._epoch is None:
            return {}
        return (await self.stats()).seats

    # -- what comes down -----------------------------------------------------------------------------------------
    def receive(self, frame: Frame) -> None:
        if frame.hello is not None:
            self._on_hello(frame.hello)
        if frame.epoch != self._epoch:
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
        for question, answer in frame.answers:
            if (future := self._questions.get(question)) is not None and not future.done():
                future.set_result(answer)
        self._publish_num_open()

    def _on_hello(self, hello: Hello) -> None:
        self._disconnect("The engine was started again.")
        try:
            self._pidfd = os.pidfd_open(hello.pid)
        except ProcessLookupError:  # it died before we read its hello; the next one's is on its way
            return
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_death)
        self._epoch, self.card = hello.epoch, hello.card
        self.num_restarts += self._was_ready
        self._was_ready = True
        log.info("engine worker %d is ready", hello.pid)

    def _on_death(self) -> None:
        if self._board.phase != STOPPING:
            log.error("the engine worker died; its %d open answers end with an error", len(self._streams))
        again = "It is being started again; ask again in a few seconds."
        self._disconnect(
            f"The engine stopped while it was answering. {again}"
            if self._board.phase == SERVING
            else "The server is shutting down and waits no longer for this answer."
        )

    def _disconnect(self, why: str) -> None:
        self._epoch = None
        if self._pidfd is not None:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        error = Unavailable(why, code="engine_lost")
        for stream in {stream for stream, _ in self._streams.values()}:
            stream.open.clear()
            stream.items.put_nowait(error)
        self._streams.clear()
        for future in self._questions.values():
            if not future.done():
                future.set_exception(error)
        self._publish_num_open()

    def _send_message(self, message: EngineMessage) -> None:
        if self._send is None:
            raise RuntimeError("the link is not connected")
        self._send(message)

    def _publish_num_open(self) -> None:
        self._board.set_open(self._api_process, len(self._streams))


async def _canary_logprobs(stream: EngineStream) -> list[float]:
    """Log-probabilities of the canary's prompt and first token."""
    scores: list[float] = []
    async for _, delta in stream:
        if delta.finish_reason is FinishReason.ERROR:
            raise InvalidAdapter(f"The adapter was tried on the base and failed: {delta.error}", code="canary_failed")
        scores += [s.logprob for s in delta.prompt_logprobs or [] if s is not None]
        scores += [s.logprob for s in delta.logprobs]
    return scores
