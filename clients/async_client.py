"""The client for ``async`` code::

    from graftwork import AsyncClient

    async with AsyncClient() as client:
        print((await client.chat("intents", "Where is my card?")).text)
        async with client.chat_stream("intents", "Where is my card?") as answer:
            async for delta in answer:
                print(delta.text, end="")
        await client.adapters.push("intents", "my-adapter/", alias="candidate")

The same calls as ``graftwork.clients.client``, awaited; what can be called is in endpoints. An upload's file is read in
pieces of 64 KiB on the event loop, as httpx does it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

import httpx

from graftwork.clients.endpoints import (
    adapters,
    experiments,
    feedback,
    files,
    generation,
    interactions,
    jobs,
    keys,
    learning_policies,
    log_policies,
    service,
)
from graftwork.clients.http.calls import Call, LinesCall, Reply, Request, StreamCall, described_by
from graftwork.clients.http.streams import EventReader, LineReader
from graftwork.clients.http.transport import Outcome, Settings
from graftwork.clients.types.generation import Usage

P = ParamSpec("P")
T = TypeVar("T")


class _Connection:
    """Sends requests, any number at a time, and tries again what may be tried again."""

    def __init__(self, settings: Settings, transport: httpx.AsyncBaseTransport | None) -> None:
        self.settings = settings
        self.http = httpx.AsyncClient(transport=transport, **settings.http_options())

    async def run(self, call: Call[T]) -> T:
        response = await self.send(call.request)
        return call.read(Reply(status=response.status_code, headers=response.headers, text=response.text))

    async def send(self, request: Request, *, stream: bool = False) -> httpx.Response:
        """The answer; with ``stream`` its body is yet to be read."""
        attempt = 0
        while True:
            verdict = self.settings.judge(request, await self._try(request, stream), attempt)
            if isinstance(verdict, httpx.Response):
                return verdict
            await asyncio.sleep(verdict)
            attempt += 1

    async def lines(self, call: LinesCall[T]) -> AsyncIterator[T]:
        reader = LineReader()
        async with contextlib.aclosing(await self.send(call.request, stream=True)) as response:
            try:
                async for data in response.aiter_bytes():
                    for line in reader.feed(data):
                        yield call.read(line)
            except httpx.RequestError as error:
                raise self.settings.connection_error(error) from error

    async def _try(self, request: Request, stream: bool) -> Outcome:
        try:
            with self.settings.prepared(request) as arguments:
                response = await self.http.send(self.http.build_request(**arguments), stream=True)
                if not (stream and response.is_success):
                    await response.aread()
                return response
        except httpx.RequestError as error:
            return error


class AsyncStream(Generic[T]):
    """An answer while it is written. Iterate it, inside an ``async with`` when the loop may be left early.

    The request is sent on entering the ``async with`` or on the first step of the loop. ``adapter`` is known from then
    on, ``usage`` after the last delta. Leaving the ``async with`` stops the server's work on it.
    """

    def __init__(self, connection: _Connection, call: StreamCall[T]) -> None:
        self._connection = connection
        self._call = call
        self._reader = EventReader(call.chunk)
        self._response: httpx.Response | None = None

    @property
    def adapter(self) -> str | None:
        """The version that answers, ``intents@7``, or the base's id; ``None`` before the request is sent."""
        return self._response.headers.get("x-graftwork-adapter") if self._response else None

    @property
    def id(self) -> str | None:
        """The answer's id, for feedback; ``None`` before its first delta."""
        return self._reader.id

    @property
    def usage(self) -> Usage | None:
        return self._reader.usage

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def __aiter__(self) -> AsyncIterator[T]:
        async with self:
            try:
                async for data in (await self._open()).aiter_bytes():
                    for delta in self._reader.feed(data):
                        yield delta
            except httpx.RequestError as error:
                raise self._connection.settings.connection_error(error) from error
        if not self._reader.done:
            raise self._connection.settings.cut_off_error()

    async def _open(self) -> httpx.Response:
        if self._response is None:
            self._response = await self._connection.send(self._call.request, stream=True)
        return self._response

    async def close(self) -> None:
        """Stop reading; the server stops writing."""
        if self._response is not None:
            await self._response.aclose()


def _awaiting(describe: Callable[P, Call[T]]) -> Callable[Concatenate[_Calls, P], Coroutine[Any, Any, T]]:
    """An endpoint as a coroutine method that carries it out."""

    @described_by(describe)
    async def method(self: _Calls, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._connection.run(describe(*args, **kwargs))

    return method


def _streaming(describe: Callable[P, StreamCall[T]]) -> Callable[Concatenate[_Calls, P], AsyncStream[T]]:
    """An endpoint as a method that begins to carry it out."""

    @described_by(describe)
    def method(self: _Calls, /, *args: P.args, **kwargs: P.kwargs) -> AsyncStream[T]:
        return AsyncStream(self._connection, describe(*args, **kwargs))

    return method


def _listing(describe: Callable[P, LinesCall[T]]) -> Callable[Concatenate[_Calls, P], AsyncIterator[T]]:
    """An endpoint as a method that reads what it lists while that is iterated."""

    @described_by(describe)
    def method(self: _Calls, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        return self._connection.lines(describe(*args, **kwargs))

    return method


class _Calls:
    def __init__(self, connection: _Connection) -> None:
        self._connection = connection


class Adapters(_Calls):
    """What can be done to adapters: ``client.adapters``."""

    list = _awaiting(adapters.list)
    get = _awaiting(adapters.get)
    push = _awaiting(adapters.push)
    promote = _awaiting(adapters.promote)
    rollback = _awaiting(adapters.rollback)
    retire = _awaiting(adapters.retire)
    history = _awaiting(adapters.history)


class Feedback(_Calls):
    """What is said of answers: ``client.feedback``."""

    send = _awaiting(feedback.send)
    list = _awaiting(feedback.list)
    export = _listing(feedback.export)


class Interactions(_Calls):
    """Logged requests and answers: ``client.interactions``."""

    list = _awaiting(interactions.list)
    get = _awaiting(interactions.get)
    export = _listing(interactions.export)
    erase = _awaiting(interactions.erase)


class Experiments(_Calls):
    """Which version is better: ``client.experiments``."""

    start = _awaiting(experiments.start)
    list = _awaiting(experiments.list)
    get = _awaiting(experiments.get)
    set_weights = _awaiting(experiments.set_weights)
    stop = _awaiting(experiments.stop)


class Files(_Calls):
    """Rows to learn from, and results of jobs: ``client.files``."""

    upload = _awaiting(files.upload)
    list = _awaiting(files.list)
    get = _awaiting(files.get)
    content = _awaiting(files.content)
    delete = _awaiting(files.delete)


class Jobs(_Calls):
    """Training runs: ``client.jobs``."""

    create = _awaiting(jobs.create)
    list = _awaiting(jobs.list)
    get = _awaiting(jobs.get)
    cancel = _awaiting(jobs.cancel)
    events = _awaiting(jobs.events)
    checkpoints = _awaiting(jobs.checkpoints)


class LearningPolicies(_Calls):
    """When adapters learn by themselves: ``client.learning_policies``."""

    list = _awaiting(learning_policies.list)
    get = _awaiting(learning_policies.get)
    set = _awaiting(learning_policies.set)
    remove = _awaiting(learning_policies.remove)


class LogPolicies(_Calls):
    """What is logged, and for how long: ``client.log_policies``."""

    list = _awaiting(log_policies.list)
    set = _awaiting(log_policies.set)
    remove = _awaiting(log_policies.remove)


class Keys(_Calls):
    """What can be done to API keys: ``client.keys``."""

    create = _awaiting(keys.create)
    list = _awaiting(keys.list)
    revoke = _awaiting(keys.revoke)


class AsyncClient(_Calls):
    """A connection to a Graftwork server. Use it in an ``async with``, or ``close`` it; tasks may share one.

    ``url`` and ``api_key`` default to ``GRAFTWORK_URL`` (else http://127.0.0.1:8000) and ``GRAFTWORK_API_KEY``.
    ``timeout`` in seconds replaces what each call would wait for its answer; streams wait for as long as it takes.
    Raises the tree in ``graftwork.clients.errors``.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float | None = None,
        max_retries: int = 2,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        settings = Settings.resolve(url, api_key, max_retries, timeout)
        super().__init__(_Connection(settings, transport))
        self.url = settings.url
        self.adapters = Adapters(self._connection)
        self.feedback = Feedback(self._connection)
        self.interactions = Interactions(self._connection)
        self.experiments = Experiments(self._connection)
        self.files = Files(self._connection)
        self.jobs = Jobs(self._connection)
        self.learning_policies = LearningPolicies(self._connection)
        self.log_policies = LogPolicies(self._connection)
        self.keys = Keys(self._connection)

    health = _awaiting(service.health)
    ready = _awaiting(service.ready)
    metrics = _awaiting(service.metrics)
    models = _awaiting(service.models)
    model = _awaiting(service.model)
    chat = _awaiting(generation.chat)
    chat_stream = _streaming(generation.chat_stream)
    complete = _awaiting(generation.complete)
    complete_stream = _streaming(generation.complete_stream)
    score = _awaiting(generation.score)

    async def close(self) -> None:
        await self._connection.http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()
