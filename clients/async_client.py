"""The asynchronous client::

    from graftwork import AsyncClient

    async with AsyncClient() as client:
        print((await client.chat("intents", "Where is my card?")).text)
        async with client.chat_stream("intents", "Where is my card?") as answer:
            async for delta in answer:
                print(delta.text, end="")
        await client.adapters.push("intents", "my-adapter/", alias="candidate")

It has the same calls as `graftwork.clients.client`, which are described in `graftwork.clients.endpoints`. Files of
uploads are read in chunks of 64 KiB on the event loop, as httpx does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

import httpx

from graftwork.clients.endpoints import (
    adapters,
    audit,
    batches,
    embeddings,
    experiments,
    feedback,
    files,
    generation,
    interactions,
    keys,
    log_policies,
    service,
    webhooks,
)
from graftwork.clients.endpoints.learning import jobs, learning_policies, rounds
from graftwork.clients.http.calls import Call, CallRequest, CallResponse, LinesCall, StreamCall, with_signature_of
from graftwork.clients.http.streams import EventReader, LineReader
from graftwork.clients.http.transport import AttemptResult, ConnectionSettings
from graftwork.clients.types.generation import Usage

P = ParamSpec("P")
T = TypeVar("T")


class _AsyncConnection:
    """Sends requests and retries them. It can be shared by tasks."""

    def __init__(self, settings: ConnectionSettings, transport: httpx.AsyncBaseTransport | None) -> None:
        self.settings = settings
        self.http = httpx.AsyncClient(transport=transport, **settings.http_options())

    async def run(self, call: Call[T]) -> T:
        response = await self.send(call.request)
        return call.read(CallResponse(status=response.status_code, headers=response.headers, text=response.text))

    async def send(self, request: CallRequest, *, stream: bool = False) -> httpx.Response:
        """Send a request, and return its response; with ``stream`` the body is not read yet."""
        attempt = 0
        while True:
            result = self.settings.response_or_delay(request, await self._attempt(request, stream), attempt)
            if isinstance(result, httpx.Response):
                return result
            await asyncio.sleep(result)
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

    async def _attempt(self, request: CallRequest, stream: bool) -> AttemptResult:
        try:
            with self.settings.open_request(request) as arguments:
                response = await self.http.send(self.http.build_request(**arguments), stream=True)
                if not (stream and response.is_success):
                    await response.aread()
                return response
        except httpx.RequestError as error:
            return error


class AsyncStream(Generic[T]):
    """A streamed answer. Iterate over it, in an ``async with`` block if the loop may end early.

    The request is sent on entering the block, or at the first iteration. ``adapter`` is known from then on, ``usage``
    after the last delta. Leaving the block cancels the request.
    """

    def __init__(self, connection: _AsyncConnection, call: StreamCall[T]) -> None:
        self._connection = connection
        self._call = call
        self._reader = EventReader(call.chunk)
        self._response: httpx.Response | None = None

    @property
    def adapter(self) -> str | None:
        """The version that answers, ``intents@7``, or the base's id; None before the request is sent."""
        return self._response.headers.get("x-graftwork-adapter") if self._response else None

    @property
    def ask_feedback(self) -> bool:
        """Whether the user is to be asked for feedback on the answer; False before the request is sent."""
        return self._response is not None and self._response.headers.get("x-graftwork-ask-feedback") == "true"

    @property
    def id(self) -> str | None:
        """The id of the answer, for feedback; None before its first delta."""
        return self._reader.id

    @property
    def usage(self) -> Usage | None:
        """The token counts; None before the last delta."""
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
        """Close the stream, and cancel the request on the server."""
        if self._response is not None:
            await self._response.aclose()


def _call_method(describe: Callable[P, Call[T]]) -> Callable[Concatenate[_AsyncResource, P], Coroutine[Any, Any, T]]:
    """Return a coroutine method that runs the call of an endpoint."""

    @with_signature_of(describe)
    async def method(self: _AsyncResource, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._connection.run(describe(*args, **kwargs))

    return method


def _stream_method(describe: Callable[P, StreamCall[T]]) -> Callable[Concatenate[_AsyncResource, P], AsyncStream[T]]:
    """Return a method that streams the answer of an endpoint."""

    @with_signature_of(describe)
    def method(self: _AsyncResource, /, *args: P.args, **kwargs: P.kwargs) -> AsyncStream[T]:
        return AsyncStream(self._connection, describe(*args, **kwargs))

    return method


def _lines_method(describe: Callable[P, LinesCall[T]]) -> Callable[Concatenate[_AsyncResource, P], AsyncIterator[T]]:
    """Return a method that iterates over the lines of an endpoint's response."""

    @with_signature_of(describe)
    def method(self: _AsyncResource, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        return self._connection.lines(describe(*args, **kwargs))

    return method


class _AsyncResource:
    def __init__(self, connection: _AsyncConnection) -> None:
        self._connection = connection


class AsyncAdaptersResource(_AsyncResource):
    """The calls for adapters: ``client.adapters``."""

    list = _call_method(adapters.list)
    get = _call_method(adapters.get)
    push = _call_method(adapters.push)
    promote = _call_method(adapters.promote)
    rollback = _call_method(adapters.rollback)
    retire = _call_method(adapters.retire)
    history = _call_method(adapters.history)
    limits = _call_method(adapters.limits)
    set_limits = _call_method(adapters.set_limits)


class AsyncFeedbackResource(_AsyncResource):
    """The calls for feedback: ``client.feedback``."""

    send = _call_method(feedback.send)
    list = _call_method(feedback.list)
    export = _lines_method(feedback.export)


class AsyncInteractionsResource(_AsyncResource):
    """The calls for logged interactions: ``client.interactions``."""

    list = _call_method(interactions.list)
    get = _call_method(interactions.get)
    export = _lines_method(interactions.export)
    erase = _call_method(interactions.erase)


class AsyncExperimentsResource(_AsyncResource):
    """The calls for experiments: ``client.experiments``."""

    start = _call_method(experiments.start)
    list = _call_method(experiments.list)
    get = _call_method(experiments.get)
    set_weights = _call_method(experiments.set_weights)
    add_arm = _call_method(experiments.add_arm)
    stop = _call_method(experiments.stop)


class AsyncFilesResource(_AsyncResource):
    """The calls for files: ``client.files``."""

    upload = _call_method(files.upload)
    list = _call_method(files.list)
    get = _call_method(files.get)
    content = _call_method(files.content)
    delete = _call_method(files.delete)


class AsyncBatchesResource(_AsyncResource):
    """The calls for batches of requests: ``client.batches``."""

    create = _call_method(batches.create)
    list = _call_method(batches.list)
    get = _call_method(batches.get)
    cancel = _call_method(batches.cancel)
    results = _lines_method(batches.results)


class AsyncJobsResource(_AsyncResource):
    """The calls for training jobs: ``client.jobs``."""

    create = _call_method(jobs.create)
    list = _call_method(jobs.list)
    get = _call_method(jobs.get)
    cancel = _call_method(jobs.cancel)
    events = _call_method(jobs.events)
    checkpoints = _call_method(jobs.checkpoints)


class AsyncLearningPoliciesResource(_AsyncResource):
    """The calls for learning policies: ``client.learning_policies``."""

    list = _call_method(learning_policies.list)
    get = _call_method(learning_policies.get)
    set = _call_method(learning_policies.set)
    remove = _call_method(learning_policies.remove)


class AsyncRoundsResource(_AsyncResource):
    """The calls for rounds of learning: ``client.rounds``."""

    begin = _call_method(rounds.begin)
    plan = _call_method(rounds.plan)
    list = _call_method(rounds.list)
    get = _call_method(rounds.get)
    undo = _call_method(rounds.undo)


class AsyncWebhooksResource(_AsyncResource):
    """The calls for webhooks: ``client.webhooks``."""

    create = _call_method(webhooks.create)
    list = _call_method(webhooks.list)
    delete = _call_method(webhooks.delete)
    test = _call_method(webhooks.test)
    deliveries = _call_method(webhooks.deliveries)


class AsyncLogPoliciesResource(_AsyncResource):
    """The calls for log policies: ``client.log_policies``."""

    list = _call_method(log_policies.list)
    set = _call_method(log_policies.set)
    remove = _call_method(log_policies.remove)


class AsyncAuditResource(_AsyncResource):
    """The calls for the audit log: ``client.audit``."""

    list = _call_method(audit.list)
    export = _lines_method(audit.export)


class AsyncKeysResource(_AsyncResource):
    """The calls for API keys: ``client.keys``."""

    create = _call_method(keys.create)
    list = _call_method(keys.list)
    get = _call_method(keys.get)
    usage = _call_method(keys.usage)
    change = _call_method(keys.change)
    rotate = _call_method(keys.rotate)
    revoke = _call_method(keys.revoke)


class AsyncClient(_AsyncResource):
    """A client of a Graftwork server. Use it in an ``async with`` block, or call ``close``. It can be shared by tasks.

    Its methods raise the errors of `graftwork.clients.errors`.

    Args:
        url: address of the server; by default ``GRAFTWORK_URL``, else http://127.0.0.1:8000.
        api_key: API key; by default ``GRAFTWORK_API_KEY``.
        timeout: replaces the timeout of each call, in seconds; streams have none.
        max_retries: number of retries for requests that failed temporarily.
        transport: transport of httpx, for tests.

    Raises:
        SettingsError: if the URL or the key is invalid.
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
        settings = ConnectionSettings.resolve(url, api_key, max_retries, timeout)
        super().__init__(_AsyncConnection(settings, transport))
        self.url = settings.url
        self.adapters = AsyncAdaptersResource(self._connection)
        self.feedback = AsyncFeedbackResource(self._connection)
        self.interactions = AsyncInteractionsResource(self._connection)
        self.experiments = AsyncExperimentsResource(self._connection)
        self.files = AsyncFilesResource(self._connection)
        self.batches = AsyncBatchesResource(self._connection)
        self.jobs = AsyncJobsResource(self._connection)
        self.learning_policies = AsyncLearningPoliciesResource(self._connection)
        self.rounds = AsyncRoundsResource(self._connection)
        self.webhooks = AsyncWebhooksResource(self._connection)
        self.log_policies = AsyncLogPoliciesResource(self._connection)
        self.keys = AsyncKeysResource(self._connection)
        self.audit = AsyncAuditResource(self._connection)

    health = _call_method(service.health)
    ready = _call_method(service.ready)
    version = _call_method(service.version)
    metrics = _call_method(service.metrics)
    models = _call_method(service.models)
    model = _call_method(service.model)
    chat = _call_method(generation.chat)
    chat_stream = _stream_method(generation.chat_stream)
    complete = _call_method(generation.complete)
    complete_stream = _stream_method(generation.complete_stream)
    score = _call_method(generation.score)
    embed = _call_method(embeddings.embed)
    tokenize = _call_method(generation.tokenize)
    detokenize = _call_method(generation.detokenize)

    async def close(self) -> None:
        """Close all connections."""
        await self._connection.http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()
