"""One vLLM server as an engine.

A request is one HTTP request for each choice, and one task that reads its answer. A server that does not answer is out
at once, and in again when it has proved anew that it holds this base: see ``proof.py``. What is not served before the
first token ends with ``Unavailable``, so that another engine may take it over; what breaks off later does, too.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, nullcontext
from pathlib import PurePath
from typing import Any, Final

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.errors import GraftworkError, InvalidAdapter, InvalidRequest, Unavailable
from graftwork.adapters.peft_format.spec import AdapterSpec
from graftwork.server.engine.request import Delta, SamplingParams
from graftwork.server.processes import SERVING, STOPPING, SharedState
from graftwork.server.transport.canary import try_adapter
from graftwork.server.transport.engine import EngineInput, EngineState, EngineStream, check_room
from graftwork.server.transport.vllm.adapters import LoadedAdapter, ServerAdapters
from graftwork.server.transport.vllm.deltas import DeltaReader
from graftwork.server.transport.vllm.metrics import VllmStats, read_stats
from graftwork.server.transport.vllm.proof import BaseProof, NotThisBase, ServedBase
from graftwork.server.transport.vllm.requests import MAX_LOGPROBS, generate_body
from graftwork.server.transport.vllm.restrictions import check_adapter
from graftwork.server.transport.vllm.server import CALL_SECONDS, NotServed, Refused, UnknownModel, VllmServer
from graftwork.server.transport.vllm.turns import Turns

log = logging.getLogger(__name__)

#: How often a server is looked at: whether it lives, or has come back.
WATCH_SECONDS: Final = 0.25
HEALTH_SECONDS: Final = 2.0

#: How long a proof may take.
PROOF_SECONDS: Final = CALL_SECONDS

#: What canaries compare: the likeliest tokens after the prompt, since prompts that are scored hold up all others.
CANARY_TOKENS: Final = SamplingParams(max_tokens=1, temperature=0.0, top_logprobs=MAX_LOGPROBS - 1)


class VllmEngine:
    """A vLLM server, as an engine; implements ``EngineProtocol``. All methods are called in one event loop.

    Args:
        server: The server.
        proof: Proves that it holds this base.
        base: The base.
        adapters: Where its host sees the folder of published adapters.
        shared_state: Receives the number of open answers; has this server's phase.
        max_open: The most answers that users may have running or waiting at once.
        max_length: Tokens of the context, if fewer than the server's.
        canary_prompt: Token ids that adapters are tried on.
        stall_seconds: A server that says nothing for so long is out, and so are its answers.
        engine: Its number, from 0, among this server's engines.

    Attributes:
        base_card: What the server said of its base; empty before the first proof.
        num_restarts: How often it came back.
    """

    def __init__(
        self,
        server: VllmServer,
        proof: BaseProof,
        *,
        base: BaseInfo,
        adapters: PurePath,
        shared_state: SharedState,
        max_open: int,
        canary_prompt: Sequence[int],
        max_length: int | None = None,
        stall_seconds: float = 60.0,
        engine: int = 0,
    ) -> None:
        self.base_card: Mapping[str, Any] = {}
        self.num_restarts = 0
        self.max_open = max_open
        self._server = server
        self._proof = proof
        self._base = base
        self._adapters = ServerAdapters(server, adapters)
        self._shared_state = shared_state
        self._canary_prompt = tuple(canary_prompt)
        self._max_length = max_length
        self._stall_seconds = stall_seconds
        self._engine = engine
        self._api_process = 0
        self._served: ServedBase | None = None
        self._why_out = "it was not reached yet"
        self._was_ready = False
        self._heard_at = 0.0
        self._look_at = 0.0
        self._turns = Turns()
        self._streams: dict[str, EngineStream] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._numbers = itertools.count()

    async def start(self, api_process: int) -> None:
        """Connect, and watch the server until ``stop``."""
        self._api_process = api_process
        self._server.connect()
        self._watchdogs = [asyncio.create_task(self._watch()), asyncio.create_task(self._watch_answers())]

    async def stop(self) -> None:
        """End all answers and close the connections."""
        for watchdog in self._watchdogs:
            watchdog.cancel()
        self._end_all("The server is shutting down.")
        await self._server.close()

    # -- state ---------------------------------------------------------------------------------------------------
    @property
    def state(self) -> EngineState:
        """Whether requests are taken, or why not."""
        if self._shared_state.phase != SERVING:
            return "draining"
        if self._served is not None:
            return "ready"
        return "recovering" if self._was_ready else "starting"

    @property
    def max_choices(self) -> int:
        """How many answers one request may have."""
        return self.max_open

    def num_open(self) -> int:
        """Answers that are under way."""
        return self._shared_state.num_open(self._engine)

    def num_background(self) -> int:
        """Answers under way that no user waits for."""
        return sum(stream.background for stream in self._streams.values())

    def _ready_server(self) -> ServedBase:
        state = self.state
        if state == "draining":
            raise Unavailable("This server is shutting down.", code=state)
        if self._served is None:
            raise Unavailable(f"vLLM at {self._server.url} is not used: {self._why_out}. Try again.", code=state)
        return self._served

    async def _watch(self) -> None:
        """Look after the server, for ever: lose it when it is silent, prove it when it is back."""
        while True:
            try:
                if self._served is None:
                    await self._try_prove()
                elif time.monotonic() >= self._look_at:
                    await self._look()
            except Exception:  # a full disk, say, must not be the last that is seen of a server
                log.exception("vLLM at %s cannot be looked after", self._server.url)
            await asyncio.sleep(WATCH_SECONDS)

    async def _watch_answers(self) -> None:
        """End answers that nothing more is to be expected of, for ever: however long a proof takes meanwhile.

        Those of a process that died end by themselves, as its host closes the connections. A host that vanished does
        not: it only says nothing more.
        """
        while True:
            if self._shared_state.phase == STOPPING:
                self._end_all("The server is shutting down and waits no longer for this answer.")
            elif self._served is None and self._is_silent():
                self._end_all(f"vLLM stopped while it was answering: {self._why_out}. Ask again.")
            await asyncio.sleep(WATCH_SECONDS)

    def _is_silent(self) -> bool:
        return time.monotonic() - self._heard_at > self._stall_seconds

    async def _look(self) -> None:
        """Lose a server that does not live. One that only says nothing gets ``stall_seconds``."""
        try:
            await self._server.get("/health", seconds=HEALTH_SECONDS)
        except NotServed as error:
            if not error.timed_out or self._is_silent():
                self._lose(error.message)
        except Refused as refused:  # by a proxy, say, behind which there is no server any more
            self._lose(refused.message)
        else:
            self._heard_at = time.monotonic()
        self._look_at = time.monotonic() + HEALTH_SECONDS

    async def _try_prove(self) -> None:
        """Use the server if it holds this base."""
        try:
            served = await self._proved()
        except (NotServed, NotThisBase) as error:
            if str(error) != self._why_out:
                self._why_out = str(error)
                log.warning("vLLM at %s is not used: %s", self._server.url, error)
            return
        length = min(served.max_length, self._max_length or served.max_length)
        self.base_card = {"engine": "vllm", "version": served.version, "max_length": length}
        self._adapters.forget()
        self._heard_at = time.monotonic()
        self._served = served
        self.num_restarts += self._was_ready
        self._was_ready = True
        log.info("vLLM %s at %s holds %s: it is used", served.version, self._server.url, self._base.id)

    async def _proved(self) -> ServedBase:
        """What the server proves. Answers may take any time, and one that never comes must not hold up the watch."""
        try:
            async with asyncio.timeout(PROOF_SECONDS):
                return await self._proof.prove(self._server)
        except TimeoutError as error:
            message = f"it did not prove what it holds within {PROOF_SECONDS:.0f} seconds"
            raise NotServed(message, timed_out=True) from error

    def _lose(self, why: str) -> None:
        """Send nothing more to the server until it has proved itself again. What it has may still come."""
        if self._served is None:
            return
        self._served, self._why_out = None, why
        log.error("vLLM at %s is lost (%s); %d answers were open", self._server.url, why, len(self._streams))

    # -- requests ------------------------------------------------------------------------------------------------
    def open(
        self,
        inputs: Sequence[EngineInput],
        /,
        *,
        adapter: str | None,
        cache_salt: str = "",
        background: bool = False,
        tenant: str = "",
        weight: float = 1.0,
    ) -> EngineStream:
        """Send the choices of one request. See ``EngineProtocol.open``.

        Raises:
            InvalidRequest: It asks for what vLLM does not compute here.
        """
        served = self._ready_server()
        check_room(
            list(self._streams.values()),
            len(inputs),
            self.max_open,
            tenant=tenant,
            weight=weight,
            background=background,
        )
        if any(sampling.pooling is not None for _, sampling in inputs):
            raise InvalidRequest(
                "vLLM, which answers here, computes no embeddings beside answers: ask a server of its own for them.",
                param="model",
                code="unsupported_parameter",
            )
        if not served.follows_grammars and any(sampling.grammar is not None for _, sampling in inputs):
            raise InvalidRequest(
                "vLLM, which answers here, was not started for structured output and tools as they are promised here: "
                "start it with --structured-outputs-config.backend guidance.",
                code="unsupported_parameter",
            )
        ids = [f"{self._api_process}-{next(self._numbers)}" for _ in inputs]
        stream = EngineStream(ids, background, tenant, weight)
        stream.open.update(stream.ids)
        for choice, (prompt, sampling) in enumerate(inputs):
            id = stream.ids[choice]
            self._streams[id] = stream
            self._tasks[id] = asyncio.create_task(
                self._answer(stream, choice, prompt, sampling, adapter=adapter, cache_salt=cache_salt)
            )
        self._publish_num_open()
        return stream

    def cancel(self, stream: EngineStream, choice: int | None = None, /) -> None:
        """Stop one choice, or all: the connection is closed, and the server computes no more of it."""
        for id in stream.ids if choice is None else [stream.ids[choice]]:
            if id in stream.open:
                self._tasks[id].cancel()
                self._close(stream, id)

    async def _answer(
        self,
        stream: EngineStream,
        choice: int,
        prompt: Sequence[int],
        sampling: SamplingParams,
        *,
        adapter: str | None,
        cache_salt: str,
    ) -> None:
        """Pass the answer of one choice to its stream; an error ends all choices of it."""
        id = stream.ids[choice]
        try:
            with self._adapters.used(adapter) if adapter is not None else nullcontext():
                async with aclosing(self._deltas(id, prompt, sampling, adapter, cache_salt)) as deltas:
                    async for delta in deltas:
                        if delta.done:
                            self._close(stream, id)
                        stream.items.put_nowait((choice, delta))
        except NotServed as error:
            self._suspect(error)
            self._fail(stream, Unavailable(f"vLLM did not answer: {error.message}. Ask again.", code="engine_lost"))
        except Refused as refused:
            self._fail(stream, InvalidRequest(f"vLLM refuses the request: {refused.message}"))
        except GraftworkError as error:
            self._fail(stream, error)
        except Exception as error:  # an answer that cannot be read must not leave its user waiting
            log.exception("an answer of vLLM at %s could not be read", self._server.url)
            self._fail(stream, GraftworkError(f"vLLM's answer could not be read ({type(error).__name__})."))

    async def _deltas(
        self, id: str, prompt: Sequence[int], sampling: SamplingParams, adapter: str | None, cache_salt: str
    ) -> AsyncGenerator[Delta, None]:
        """The deltas of one choice. A server that forgot the adapter is given it, and the request, once more."""
        try:
            async for delta in self._deltas_once(id, prompt, sampling, adapter, cache_salt):
                yield delta
            return
        except UnknownModel as unknown:  # said before anything else
            if adapter is None:
                raise NotServed(unknown.message) from unknown
            self._adapters.forget(adapter)
        try:
            async for delta in self._deltas_once(id, prompt, sampling, adapter, cache_salt):
                yield delta
        except UnknownModel as unknown:
            raise NotServed(unknown.message) from unknown

    async def _deltas_once(
        self, id: str, prompt: Sequence[int], sampling: SamplingParams, adapter: str | None, cache_salt: str
    ) -> AsyncGenerator[Delta, None]:
        if adapter is not None:
            await self._adapters.ensure(adapter)
        if self._served is None:
            raise NotServed(self._why_out)
        async with self._turns.alone() if sampling.prompt_logprobs is not None else self._turns.beside_others():
            async for delta in self._asked(id, prompt, sampling, adapter or self._served.model, cache_salt):
                yield delta

    async def _asked(
        self, id: str, prompt: Sequence[int], sampling: SamplingParams, model: str, cache_salt: str
    ) -> AsyncGenerator[Delta, None]:
        reader = DeltaReader(id, sampling)
        # Only whole answers have the prompt's scores.
        streams = sampling.prompt_logprobs is None and sampling.max_tokens > 0
        body = generate_body(model, prompt, sampling, cache_salt=cache_salt, stream=streams)
        if not streams:
            yield reader.whole(await self._server.generate(body), model=model)
            return
        async with aclosing(self._server.stream(body)) as events:
            async for event in events:
                self._heard_at = time.monotonic()
                for delta in reader.push(event):
                    yield delta
        yield reader.finish()

    def _suspect(self, error: NotServed) -> None:
        """Lose a server that broke a connection, or aborted what nobody cancelled; look at once whether others live.

        One that is only full says so with 503.
        """
        if error.status is None:
            self._lose(error.message)
        self._look_at = 0.0

    def _fail(self, stream: EngineStream, error: GraftworkError) -> None:
        """End all choices of a stream with an error."""
        if stream.open:
            self.cancel(stream)
            stream.items.put_nowait(error)

    def _close(self, stream: EngineStream, id: str) -> None:
        stream.open.discard(id)
        del self._streams[id], self._tasks[id]
        self._publish_num_open()

    def _end_all(self, why: str) -> None:
        for stream in set(self._streams.values()):
            self._fail(stream, Unavailable(why, code="engine_lost"))

    def _publish_num_open(self) -> None:
        self._shared_state.set_open(self._api_process, self._engine, len(self._streams))

    # -- adapters ------------------------------------------------------------------------------------------------
    def takes(self, spec: AdapterSpec, /) -> None:
        """Check whether vLLM can serve an adapter: see ``check_adapter``."""
        check_adapter(spec, self._base)

    async def ensure(self, digest: str, /) -> None:
        """Register an adapter. See ``EngineProtocol.ensure``."""
        self._ready_server()
        try:
            await self._adapters.ensure(digest)
        except InvalidAdapter as error:
            log.warning("%s cannot be loaded: %s", digest, error.message)
        except NotServed as error:
            raise Unavailable(f"vLLM did not load the adapter: {error.message}.", code="engine_lost") from error

    async def release(self, digest: str, /) -> None:
        """Make the server forget an adapter after its last request. See ``EngineProtocol.release``."""
        try:
            await self._adapters.release(digest)
        except NotServed as error:
            raise Unavailable(f"vLLM may still know the adapter: {error.message}.", code="engine_lost") from error

    async def canary(self, digest: str, /) -> None:
        """Register a published adapter, and try it: see ``try_adapter``."""
        await try_adapter(self, self._canary_prompt, digest, ask=CANARY_TOKENS)

    async def residency(self) -> Mapping[str, LoadedAdapter]:
        """Registered adapters by digest: those of the running batch are on the device, others in host memory or not."""
        if self._served is None:
            return {}
        running = (await self.stats()).running_adapters
        return {
            digest: LoadedAdapter("device" if digest in running else "host", load_ms)
            for digest, load_ms in self._adapters.load_ms.items()
        }

    async def stats(self) -> VllmStats:
        """What the server's metrics say.

        Raises:
            Unavailable: It is not there, too busy to answer, or its metrics cannot be read.
        """
        self._ready_server()
        try:
            text = (await self._server.get("/metrics", seconds=5.0)).text
            return read_stats(text, num_loads=self._adapters.num_loads)
        except (NotServed, Refused) as error:
            raise Unavailable(f"vLLM does not say how it is: {error.message}.", code="busy") from error
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            why = f"its metrics cannot be read ({type(error).__name__}: {error})"
            raise Unavailable(f"vLLM does not say how it is: {why}.", code="busy") from error
