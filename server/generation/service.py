"""A generation from admission to its end: admit, prepare, start, stream or collect, finish. The routes call it; it
calls the engine's client.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import litserve as ls
from anyio import to_thread
from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from litserve.utils import ResponseBufferItem
from starlette.requests import ClientDisconnect

from graftwork.adapters.errors import Conflict, GraftworkError, InvalidRequest
from graftwork.adapters.experiments.experiment import Assignment
from graftwork.adapters.experiments.exposures import SHADOW_OF
from graftwork.adapters.feedback.ids import IdKind
from graftwork.adapters.feedback.interactions import Completion, NewInteraction
from graftwork.adapters.names import TRIAL, is_trial
from graftwork.adapters.prompts.prompts import Prompts
from graftwork.server.bodies import MAX_LABEL_CHARS, parse
from graftwork.server.engine.request import Delta, SamplingParams
from graftwork.server.generation.interaction_log import EndedAnswer
from graftwork.server.generation.shadows import ShadowQueue, ShadowRequest
from graftwork.server.http.services import Services
from graftwork.server.openai.answers.answer import Answer, AnswerHead
from graftwork.server.openai.answers.chat import ChatAnswer
from graftwork.server.openai.answers.completions import CompletionAnswer
from graftwork.server.openai.events import error_frame
from graftwork.server.openai.requests.chat import ChatCompletionRequest
from graftwork.server.openai.requests.completions import CompletionRequest
from graftwork.server.openai.requests.generation import GenerationRequest
from graftwork.server.openai.vocabulary import Vocabulary
from graftwork.server.transport.client import EngineClient, EngineStream
from graftwork.server.transport.messages import MAILBOX, EngineMessage, Frame
from graftwork.version import __version__

if TYPE_CHECKING:
    from litserve import LitServer
from graftwork.server.generation.accounting import GenerationTimings
from graftwork.server.generation.admission import Admission
from graftwork.server.generation.routing import Route, apply_arm

log = logging.getLogger(__name__)

SESSION_HEADER = "x-graftwork-session"

EngineInput = tuple[tuple[int, ...], SamplingParams]
"""What the engine is asked for one choice: a prompt and how to go on."""


class Gateway(ls.specs.base.LitSpec):
    """LitServe's idea of an API specification: the two generation routes."""

    def __init__(
        self, services: Services, link: EngineClient, prompts: Prompts, *, max_busy_for_shadows: int = 8
    ) -> None:
        super().__init__()
        self.api_path = "/v1/chat/completions"  # names LitServe's queue
        self.services = services
        self.link = link
        self.prompts = prompts
        self.vocabulary = Vocabulary(prompts)
        self.shadows: ShadowQueue[Admission] = ShadowQueue(
            self._answer_copy, services.metrics, num_busy=link.num_open, max_busy=max_busy_for_shadows
        )
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
        self.response_buffer[MAILBOX] = ResponseBufferItem(event=asyncio.Event(), response_queue=self)

    def connect(self) -> None:
        """In the API process, once its event loop runs."""
        self.link.connect(self.response_queue_id or 0, self._send)
        self.shadows.start()

    def _send(self, message: EngineMessage) -> None:
        self.request_queue.put((self.response_queue_id, MAILBOX, time.monotonic(), message))

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
        admission = await self._admit("chatcmpl", request, parse(ChatCompletionRequest, await request.body()))
        return await self._answer(request, admission, *await self._prepared(admission))

    async def complete(self, request: Request) -> Response:
        """``POST /v1/completions``"""
        admission = await self._admit("cmpl", request, parse(CompletionRequest, await request.body()))
        return await self._answer(request, admission, *await self._prepared(admission))

    async def _prepared(self, admission: Admission) -> tuple[Answer, list[EngineInput]]:
        """The empty answer, and what the engine is asked for it."""
        body, head = apply_arm(admission.route.draw, admission.body), self._head(admission)
        if isinstance(body, ChatCompletionRequest):
            prompt = await to_thread.run_sync(self.prompts.chat, body.chat_messages())
            return ChatAnswer(body, head, self.vocabulary, prompt), self._work(admission, body, [prompt])
        assert isinstance(body, CompletionRequest)
        prompts = await to_thread.run_sync(body.prompts, self.prompts.encode, self.services.base.vocab_size)
        return CompletionAnswer(body, head, self.vocabulary, prompts), self._work(admission, body, prompts)

    async def _admit(self, kind: IdKind, request: Request, body: GenerationRequest) -> Admission:
        """Decide where the request goes and mint the id that says so; nothing has been queued yet."""
        ids = self.services.records.ids
        unit = ids.unit(user=body.user or None, session=_session(request, body))
        route = await self._resolve(body.model, unit, chat=kind == "chatcmpl")
        created = int(time.time())
        return Admission(
            kind=kind,
            id=route.mint_id(ids, kind, unit=unit, at=created),
            created=created,
            unit=unit,
            route=route,
            body=body,
            key_id=request.state.principal.key_id,
            store=body.store is not False,
            num_bytes=len(await request.body()),
        )

    async def _resolve(self, model: str, unit: str | None, *, chat: bool) -> Route:
        """What ``model`` means for this ``unit``, the sticky key of whoever asks (None: nobody was named)."""
        base = self.services.base
        if model == base.id:
            return Route(base.id, None, None)
        # A plain name takes part in the adapter's experiment; who names a version or an alias gets that.
        drawn = self.services.experiments.assign(model, unit, chat=chat)
        if drawn is not None:
            return self._route_of(drawn, model)
        version = self.services.registry.resolve(model)
        if version.base_digest != base.digest:
            raise Conflict(
                f"{version.id} was pushed for another base ({version.base_digest}); this server runs {base.id} "
                f"({base.digest}). Serve that base, or train and push the adapter again.",
                param="model",
                code="wrong_base",
            )
        # All trials are one in the metrics.
        return Route(version.id, TRIAL if is_trial(version.name) else version.name, version.digest)

    def _route_of(self, drawn: Assignment, adapter: str) -> Route:
        """To an arm. That its version fits this base and is not retired was seen to when the experiment began."""
        if drawn.arm.version is None:
            return Route(self.services.base.id, None, None, drawn)
        version = self.services.registry.version(adapter, drawn.arm.version)
        return Route(version.id, version.name, version.digest, drawn)

    def _work(
        self, admission: Admission, body: GenerationRequest, prompts: Sequence[Sequence[int]]
    ) -> list[EngineInput]:
        max_length = self.link.card.get("max_length", self.services.base.max_positions)
        drawn = admission.route.draw
        cap = None if drawn is None else drawn.arm.sampling.get("max_tokens")
        work = []
        for prompt in prompts:
            for choice in range(body.choices):
                wishes = body.sampling_params(len(prompt), max_length, self.prompts.eos_token_ids, choice=choice)
                if cap is not None:
                    wishes = replace(wishes, max_tokens=max(min(wishes.max_tokens, cap), wishes.min_tokens))
                work.append((tuple(prompt), wishes))
        return work

    def _head(self, admission: Admission) -> AnswerHead:
        digest = self.services.base.digest.removeprefix("sha256:")
        return AnswerHead(
            id=admission.id,
            created=admission.created,
            model=admission.body.model,
            fingerprint=f"gw-{__version__}-{self.link.card.get('quantize', 'none')}-{digest[:8]}",
            graftwork=admission.route.labels(),
        )

    # -- answers -------------------------------------------------------------------------------------------------
    async def _answer(
        self,
        request: Request,
        admission: Admission,
        answer: Answer,
        work: list[EngineInput],
    ) -> Response:
        route, clock = admission.route, GenerationTimings()
        request.state.adapter = route.adapter or route.name
        stream = self.link.open(work, adapter=route.digest)
        headers = {f"x-graftwork-{name}": value for name, value in route.labels().items()}
        if admission.body.stream:
            events = self._events(stream, admission, answer, clock)
            return StreamingResponse(
                events, media_type="text/event-stream", headers={**headers, "cache-control": "no-cache"}
            )
        error: Exception | None = None
        try:
            await self._collect(request, stream, answer, clock)
        except ClientDisconnect:
            raise
        except Exception as failure:
            error = failure
            raise
        finally:
            self.link.cancel(stream)
            self._settle(admission, answer, clock, error)
        return Response(answer.body(), media_type="application/json", headers=headers)

    async def _collect(self, request: Request, stream: EngineStream, answer: Answer, clock: GenerationTimings) -> None:
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

    async def _take_all(self, stream: EngineStream, answer: Answer, clock: GenerationTimings) -> None:
        async for choice, delta in stream:
            piece = answer.push(choice, delta)
            self._tick(clock, delta)
            if piece.finish is not None:
                self.link.cancel(stream, choice)
                if answer.done:
                    return

    async def _events(
        self, stream: EngineStream, admission: Admission, answer: Answer, clock: GenerationTimings
    ) -> AsyncIterator[bytes]:
        """Server-sent events as the engine goes; the engine stops when the client leaves."""
        error: Exception | None = None
        try:
            if opening := answer.opening():
                yield opening
            async for choice, delta in stream:
                piece = answer.push(choice, delta)
                self._tick(clock, delta)
                if events := answer.frames(choice, piece):
                    yield events
                if piece.finish is not None:
                    self.link.cancel(stream, choice)
                    if answer.done:
                        break
            yield answer.closing()
        except GraftworkError as failure:
            error = failure
            yield error_frame(failure)
        except Exception as failure:
            error = failure
            raise
        finally:
            self.link.cancel(stream)
            self._settle(admission, answer, clock, error)

    def _tick(self, clock: GenerationTimings, delta: Delta) -> None:
        if clock.scheduled_at is None:
            clock.scheduled_at = delta.admitted_at
        if not delta.token_ids:
            return
        now = time.monotonic()
        if clock.first is None:
            clock.first = now
        if not clock.measured:
            return
        if clock.last is None:
            self.services.metrics.first_token(now - clock.began)
        else:
            self.services.metrics.next_token(now - clock.last)
        clock.last = now

    def _settle(self, admission: Admission, answer: Answer, clock: GenerationTimings, error: Exception | None) -> None:
        """The answer has ended, one way or another: count it, and have it logged."""
        route = admission.route
        self._log(admission, answer, clock, error)
        if route.draw is not None and admission.store and error is None and answer.done:
            experiment = self.services.experiments.running_on(admission.body.model)
            if experiment is not None and experiment.name == route.draw.experiment:
                self.shadows.offer(experiment, admission.id, admission)
        self.services.traffic.add(route.name, answer.num_completion_tokens)
        self.services.metrics.tokens(
            adapter=route.adapter or route.name,
            prompt=answer.num_prompt_tokens,
            completion=answer.num_completion_tokens,
        )

    def _log(self, admission: Admission, answer: Answer, clock: GenerationTimings, error: Exception | None) -> None:
        if not admission.store:
            return
        self.services.records.log.put(
            EndedAnswer(
                id=admission.id,
                adapter=admission.route.adapter or admission.route.name,
                key_id=admission.key_id,
                num_bytes=admission.num_bytes + 64 * answer.num_completion_tokens,
                outcome=partial(self._outcome, admission, answer, clock, time.monotonic(), error),
            )
        )

    async def _answer_copy(self, copy: ShadowRequest[Admission]) -> None:
        """Answer a request once more, as a shadow arm does; only the log hears of it."""
        original, created = copy.of, int(time.time())
        route = self._route_of(copy.draw, original.body.model)
        changes: dict[str, Any] = {
            "n": None,
            "stream": None,
            "metadata": {**(original.body.metadata or {}), SHADOW_OF: original.id},
        }
        if isinstance(original.body, CompletionRequest):
            changes["prompt"] = original.body.prompt[:1]
        admission = replace(
            original,
            id=route.mint_id(self.services.records.ids, original.kind, unit=original.unit, at=created),
            created=created,
            route=route,
            body=original.body.model_copy(update=changes),
        )
        answer, work = await self._prepared(admission)
        clock = GenerationTimings(measured=False)
        stream = self.link.open(work, adapter=route.digest)
        try:
            await self._take_all(stream, answer, clock)
        except GraftworkError as failure:
            self._log(admission, answer, clock, failure)
            raise
        finally:
            self.link.cancel(stream)
        self._log(admission, answer, clock, None)

    def _outcome(
        self, admission: Admission, answer: Answer, clock: GenerationTimings, ended: float, error: Exception | None
    ) -> NewInteraction:
        """The row of an answer that ended. Called in the log's thread: nothing changes any more."""
        body = admission.body
        return NewInteraction(
            id=admission.id,
            base=self.services.base.id,
            model=body.model,
            status="error" if error is not None else "ok" if answer.done else "cancelled",
            error=None if error is None else getattr(error, "message", type(error).__name__),
            prompt=body.logged_prompt(),
            sampling=body.logged_sampling(),
            completions=tuple(
                Completion(index=choice.index, text=choice.text, finish_reason=choice.finish)
                for choice in answer.choices
            ),
            prompt_tokens=answer.num_prompt_tokens,
            completion_tokens=answer.num_completion_tokens,
            queue_ms=clock.ms(clock.scheduled_at),
            first_token_ms=clock.ms(clock.first),
            total_ms=clock.ms(ended) or 0.0,
            user=body.user or None,
            metadata=None if body.metadata is None else dict(body.metadata),
            key_id=admission.key_id,
        )


def _session(request: Request, body: GenerationRequest) -> str | None:
    """Who asks, where the body names no user: a conversation or a visitor, for experiments."""
    named = (body.metadata or {}).get("session")
    if named:
        return named
    session = request.headers.get(SESSION_HEADER)
    if session is not None and len(session) > MAX_LABEL_CHARS:
        raise InvalidRequest(
            f"the header {SESSION_HEADER} has {len(session)} characters: shorten it to {MAX_LABEL_CHARS} at most",
            param=SESSION_HEADER,
        )
    return session or None


async def _disconnected(request: Request) -> None:
    """Returns when the client has gone. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
