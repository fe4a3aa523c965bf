"""The synchronous client::

    from graftwork import Client

    with Client() as client:
        print(client.chat("intents", "Where is my card?").text)
        with client.chat_stream("intents", "Where is my card?") as answer:
            for delta in answer:
                print(delta.text, end="")
        client.adapters.push("intents", "my-adapter/", alias="candidate")

The calls are described in `graftwork.clients.endpoints`; this module runs them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Concatenate, Generic, ParamSpec, Self, TypeVar

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


class _Connection:
    """Sends requests and retries them. It can be shared by threads."""

    def __init__(self, settings: ConnectionSettings, transport: httpx.BaseTransport | None) -> None:
        self.settings = settings
        self.http = httpx.Client(transport=transport, **settings.http_options())

    def run(self, call: Call[T]) -> T:
        response = self.send(call.request)
        return call.read(CallResponse(status=response.status_code, headers=response.headers, text=response.text))

    def send(self, request: CallRequest, *, stream: bool = False) -> httpx.Response:
        """Send a request, and return its response; with ``stream`` the body is not read yet."""
        attempt = 0
        while True:
            result = self.settings.response_or_delay(request, self._attempt(request, stream), attempt)
            if isinstance(result, httpx.Response):
                return result
            time.sleep(result)
            attempt += 1

    def lines(self, call: LinesCall[T]) -> Iterator[T]:
        reader = LineReader()
        with contextlib.closing(self.send(call.request, stream=True)) as response:
            try:
                for data in response.iter_bytes():
                    yield from map(call.read, reader.feed(data))
            except httpx.RequestError as error:
                raise self.settings.connection_error(error) from error

    def _attempt(self, request: CallRequest, stream: bool) -> AttemptResult:
        try:
            with self.settings.open_request(request) as arguments:
                response = self.http.send(self.http.build_request(**arguments), stream=True)
                if not (stream and response.is_success):
                    response.read()
                return response
        except httpx.RequestError as error:
            return error


class Stream(Generic[T]):
    """A streamed answer. Iterate over it, in a ``with`` block if the loop may end early.

    The request is sent on entering the block, or at the first iteration. ``adapter`` is known from then on, ``usage``
    after the last delta. Leaving the block cancels the request.
    """

    def __init__(self, connection: _Connection, call: StreamCall[T]) -> None:
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

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[T]:
        with self:
            try:
                for data in self._open().iter_bytes():
                    yield from self._reader.feed(data)
            except httpx.RequestError as error:
                raise self._connection.settings.connection_error(error) from error
        if not self._reader.done:
            raise self._connection.settings.cut_off_error()

    def _open(self) -> httpx.Response:
        if self._response is None:
            self._response = self._connection.send(self._call.request, stream=True)
        return self._response

    def close(self) -> None:
        """Close the stream, and cancel the request on the server."""
        if self._response is not None:
            self._response.close()


def _call_method(describe: Callable[P, Call[T]]) -> Callable[Concatenate[_Resource, P], T]:
    """Return a method that runs the call of an endpoint."""

    @with_signature_of(describe)
    def method(self: _Resource, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._connection.run(describe(*args, **kwargs))

    return method


def _stream_method(describe: Callable[P, StreamCall[T]]) -> Callable[Concatenate[_Resource, P], Stream[T]]:
    """Return a method that streams the answer of an endpoint."""

    @with_signature_of(describe)
    def method(self: _Resource, /, *args: P.args, **kwargs: P.kwargs) -> Stream[T]:
        return Stream(self._connection, describe(*args, **kwargs))

    return method


def _lines_method(describe: Callable[P, LinesCall[T]]) -> Callable[Concatenate[_Resource, P], Iterator[T]]:
    """Return a method that iterates over the lines of an endpoint's response."""

    @with_signature_of(describe)
    def method(self: _Resource, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return self._connection.lines(describe(*args, **kwargs))

    return method


class _Resource:
    def __init__(self, connection: _Connection) -> None:
        self._connection = connection


class AdaptersResource(_Resource):
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


class FeedbackResource(_Resource):
    """The calls for feedback: ``client.feedback``."""

    send = _call_method(feedback.send)
    list = _call_method(feedback.list)
    export = _lines_method(feedback.export)


class InteractionsResource(_Resource):
    """The calls for logged interactions: ``client.interactions``."""

    list = _call_method(interactions.list)
    get = _call_method(interactions.get)
    export = _lines_method(interactions.export)
    erase = _call_method(interactions.erase)


class ExperimentsResource(_Resource):
    """The calls for experiments: ``client.experiments``."""

    start = _call_method(experiments.start)
    list = _call_method(experiments.list)
    get = _call_method(experiments.get)
    set_weights = _call_method(experiments.set_weights)
    add_arm = _call_method(experiments.add_arm)
    stop = _call_method(experiments.stop)


class FilesResource(_Resource):
    """The calls for files: ``client.files``."""

    upload = _call_method(files.upload)
    list = _call_method(files.list)
    get = _call_method(files.get)
    content = _call_method(files.content)
    delete = _call_method(files.delete)


class BatchesResource(_Resource):
    """The calls for batches of requests: ``client.batches``."""

    create = _call_method(batches.create)
    list = _call_method(batches.list)
    get = _call_method(batches.get)
    cancel = _call_method(batches.cancel)
    results = _lines_method(batches.results)


class JobsResource(_Resource):
    """The calls for training jobs: ``client.jobs``."""

    create = _call_method(jobs.create)
    list = _call_method(jobs.list)
    get = _call_method(jobs.get)
    cancel = _call_method(jobs.cancel)
    events = _call_method(jobs.events)
    checkpoints = _call_method(jobs.checkpoints)


class LearningPoliciesResource(_Resource):
    """The calls for learning policies: ``client.learning_policies``."""

    list = _call_method(learning_policies.list)
    get = _call_method(learning_policies.get)
    set = _call_method(learning_policies.set)
    remove = _call_method(learning_policies.remove)


class RoundsResource(_Resource):
    """The calls for rounds of learning: ``client.rounds``."""

    begin = _call_method(rounds.begin)
    plan = _call_method(rounds.plan)
    list = _call_method(rounds.list)
    get = _call_method(rounds.get)
    undo = _call_method(rounds.undo)


class WebhooksResource(_Resource):
    """The calls for webhooks: ``client.webhooks``."""

    create = _call_method(webhooks.create)
    list = _call_method(webhooks.list)
    delete = _call_method(webhooks.delete)
    test = _call_method(webhooks.test)
    deliveries = _call_method(webhooks.deliveries)


class LogPoliciesResource(_Resource):
    """The calls for log policies: ``client.log_policies``."""

    list = _call_method(log_policies.list)
    set = _call_method(log_policies.set)
    remove = _call_method(log_policies.remove)


class AuditResource(_Resource):
    """The calls for the audit log: ``client.audit``."""

    list = _call_method(audit.list)
    export = _lines_method(audit.export)


class KeysResource(_Resource):
    """The calls for API keys: ``client.keys``."""

    create = _call_method(keys.create)
    list = _call_method(keys.list)
    get = _call_method(keys.get)
    usage = _call_method(keys.usage)
    change = _call_method(keys.change)
    rotate = _call_method(keys.rotate)
    revoke = _call_method(keys.revoke)


class Client(_Resource):
    """A client of a Graftwork server. Use it in a ``with`` block, or call ``close``. It can be shared by threads.

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
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        settings = ConnectionSettings.resolve(url, api_key, max_retries, timeout)
        super().__init__(_Connection(settings, transport))
        self.url = settings.url
        self.adapters = AdaptersResource(self._connection)
        self.feedback = FeedbackResource(self._connection)
        self.interactions = InteractionsResource(self._connection)
        self.experiments = ExperimentsResource(self._connection)
        self.files = FilesResource(self._connection)
        self.batches = BatchesResource(self._connection)
        self.jobs = JobsResource(self._connection)
        self.learning_policies = LearningPoliciesResource(self._connection)
        self.rounds = RoundsResource(self._connection)
        self.webhooks = WebhooksResource(self._connection)
        self.log_policies = LogPoliciesResource(self._connection)
        self.keys = KeysResource(self._connection)
        self.audit = AuditResource(self._connection)

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

    def close(self) -> None:
        """Close all connections."""
        self._connection.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
