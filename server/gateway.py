"""The generation routes, and LitServe's seam below them.

``Gateway`` is the LitSpec: it owns the routes, sends messages up LitServe's request queue, and fans the frames that
come down out to the open streams. A request's way: authenticate → parse → resolve → tokenize → admit → stream → settle.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import litserve as ls
from anyio import to_thread
from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from litserve.utils import ResponseBufferItem
from starlette.requests import ClientDisconnect

import graftwork
from graftwork.adapters.errors import Conflict, GraftworkError
from graftwork.adapters.prompts import Prompts
from graftwork.server.answers import Answer, ChatAnswer, CompletionAnswer, Head, Vocabulary, error_frame
from graftwork.server.engine.request import SamplingParams
from graftwork.server.link import EngineLink, Stream
from graftwork.server.schemas import ChatCompletionRequest, CompletionRequest, Generation, parse
from graftwork.server.services import Services
from graftwork.server.wire import Frame, Up
from graftwork.server.worker import MUX

if TYPE_CHECKING:
    from litserve import LitServer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes: the version that answers it (``None``: the bare base), by its public name."""

    name: str
    adapter: str | None
    digest: str | None


@dataclass(slots=True)
class Clock:
    """One answer's timings, for the metrics."""

    began: float = field(default_factory=time.perf_counter)
    last: float | None = None


class Gateway(ls.specs.base.LitSpec):
    """LitServe's idea of an API specification: the two generation routes."""

    def __init__(self, services: Services, link: EngineLink, prompts: Prompts) -> None:
        super().__init__()
        self.api_path = "/v1/chat/completions"  # names LitServe's queue
        self.services = services
        self.link = link
        self.prompts = prompts
        self.vocabulary = Vocabulary(prompts)
        self.add_endpoint("/v1/chat/completions", self.chat, ["POST"])
        self.add_endpoint("/v1/completions", self.complete, ["POST"])

    # -- LitServe's seam -----------------------------------------------------------------------------------------
    @property
    def stream(self) -> bool:
        return True

    def __getstate__(self) -> dict[str, Any]:
        # LitServe pickles the spec into the worker, which needs nothing of it.
        return {"api_path": self.api_path}

    def setup(self, server: LitServer) -> None:
        super().setup(server)
        self.response_buffer[MUX] = ResponseBufferItem(event=asyncio.Event(), response_queue=self)

    def connect(self) -> None:
        """In the API process, once its event loop runs."""
        self.link.connect(self.response_queue_id or 0, self._send)

    def _send(self, message: Up) -> None:
        self.request_queue.put((self.response_queue_id, MUX, time.monotonic(), message))

    def append(self, item: tuple[Frame, Any]) -> None:
        """LitServe hands every message from the worker to the buffer's queue: that is us."""
        try:
            self.link.receive(item[0])
        except Exception:  # raised into LitServe's reader it would end the reader, and with it every answer
            log.exception("a frame from the engine could not be taken in")

    def decode_request(self, request: Request, context_kwargs: Any = None) -> Any:
        raise NotImplementedError("requests are decoded by the routes")

    def encode_response(self, output: Any, context_kwargs: Any = None) -> Any:
        raise NotImplementedError("responses are encoded by the routes")

    # -- routes --------------------------------------------------------------------------------------------------
    async def chat(self, request: Request) -> Response:
        """``POST /v1/chat/completions``"""
        body = parse(ChatCompletionRequest, await request.body())
        route = await self._resolve(body.model)
        prompt = await to_thread.run_sync(self.prompts.chat, body.chat_messages())
        work = self._work(body, [prompt])
        answer = ChatAnswer(body, self._head("chatcmpl", body, route), self.vocabulary, prompt)
        return await self._answer(request, body, route, answer, work)

    async def complete(self, request: Request) -> Response:
        """``POST /v1/completions``"""
        body = parse(CompletionRequest, await request.body())
        route = await self._resolve(body.model)
        prompts = await to_thread.run_sync(body.prompts, self.prompts.encode, self.services.base.vocab_size)
        work = self._work(body, prompts)
        answer = CompletionAnswer(body, self._head("cmpl", body, route), self.vocabulary, prompts)
        return await self._answer(request, body, route, answer, work)

    async def _resolve(self, model: str) -> Route:
        base = self.services.base
        if model == base.id:
            return Route(base.id, None, None)
        version = self.services.registry.resolve(model)
        if version.base_digest != base.digest:
            raise Conflict(
                f"{version.id} was pushed for another base ({version.base_digest}); this server runs {base.id} "
                f"({base.digest}). Serve that base, or train and push the adapter again.",
                param="model",
                code="wrong_base",
            )
        return Route(version.id, version.name, version.digest)

    def _work(self, body: Generation, prompts: list[Any]) -> list[tuple[tuple[int, ...], SamplingParams]]:
        max_length = self.link.card.get("max_length", self.services.base.max_positions)
        return [
            (tuple(prompt), body.sampling(len(prompt), max_length, self.prompts.eos_token_ids, choice=choice))
            for prompt in prompts
            for choice in range(body.choices)
        ]

    def _head(self, kind: str, body: Generation, route: Route) -> Head:
        digest = self.services.base.digest.removeprefix("sha256:")
        return Head(
            id=f"{kind}-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=body.model,
            fingerprint=f"gw-{graftwork.__version__}-{self.link.card.get('quantize', 'none')}-{digest[:8]}",
            graftwork={"adapter": route.name},
        )

    # -- answers -------------------------------------------------------------------------------------------------
    async def _answer(
        self,
        request: Request,
        body: Generation,
        route: Route,
        answer: Answer,
        work: list[tuple[tuple[int, ...], SamplingParams]],
    ) -> Response:
        request.state.adapter = route.adapter or route.name
        stream = self.link.open(work, adapter=route.digest)
        headers = {"x-graftwork-adapter": route.name}
        if body.stream:
            events = self._events(stream, answer, route)
            return StreamingResponse(
                events, media_type="text/event-stream", headers={**headers, "cache-control": "no-cache"}
            )
        try:
            await self._collect(request, stream, answer, Clock())
        finally:
            self.link.cancel(stream)
        self._settle(route, answer)
        return Response(answer.body(), media_type="application/json", headers=headers)

    async def _collect(self, request: Request, stream: Stream, answer: Answer, clock: Clock) -> None:
        """Take in everything, unless the client leaves."""
        collecting = asyncio.ensure_future(self._take_all(stream, answer, clock))
        leaving = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait((collecting, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not collecting.done():
                raise ClientDisconnect
            collecting.result()
        finally:
            for task in (collecting, leaving):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError, GraftworkError):
                await asyncio.gather(collecting, leaving, return_exceptions=True)

    async def _take_all(self, stream: Stream, answer: Answer, clock: Clock) -> None:
        async for choice, delta in stream:
            piece = answer.push(choice, delta)
            self._tick(clock, len(delta.token_ids))
            if piece.finish is not None:
                self.link.cancel(stream, choice)
                if answer.done:
                    return

    async def _events(self, stream: Stream, answer: Answer, route: Route) -> AsyncIterator[bytes]:
        """Server-sent events as the engine goes; the engine stops when the client leaves."""
        clock = Clock()
        try:
            if opening := answer.opening():
                yield opening
            async for choice, delta in stream:
                piece = answer.push(choice, delta)
                self._tick(clock, len(delta.token_ids))
                if events := answer.frames(choice, piece):
                    yield events
                if piece.finish is not None:
                    self.link.cancel(stream, choice)
                    if answer.done:
                        break
            yield answer.closing()
        except GraftworkError as error:
            yield error_frame(error)
        finally:
            self.link.cancel(stream)
            self._settle(route, answer)

    def _tick(self, clock: Clock, num_tokens: int) -> None:
        if not num_tokens:
            return
        now = time.perf_counter()
        if clock.last is None:
            self.services.metrics.first_token(now - clock.began)
        else:
            self.services.metrics.next_token(now - clock.last)
        clock.last = now

    def _settle(self, route: Route, answer: Answer) -> None:
        self.services.traffic.add(route.name, answer.num_completion_tokens)
        self.services.metrics.tokens(
            adapter=route.adapter or route.name,
            prompt=answer.num_prompt_tokens,
            completion=answer.num_completion_tokens,
        )


async def _disconnected(request: Request) -> None:
    """Returns when the client has gone. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
