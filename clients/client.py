"""The client for ordinary code::

    from graftwork import Client

    with Client() as client:
        print(client.chat("intents", "Where is my card?").text)
        with client.chat_stream("intents", "Where is my card?") as answer:
            for delta in answer:
                print(delta.text, end="")
        client.adapters.push("intents", "my-adapter/", alias="candidate")

What can be called, and with what, is in endpoints; this file only carries calls out and waits.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Concatenate, Generic, ParamSpec, Self, TypeVar

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
    """Sends requests, from one thread or many, and tries again what may be tried again."""

    def __init__(self, settings: Settings, transport: httpx.BaseTransport | None) -> None:
        self.settings = settings
        self.http = httpx.Client(transport=transport, **settings.http_options())

    def run(self, call: Call[T]) -> T:
        response = self.send(call.request)
        return call.read(Reply(status=response.status_code, headers=response.headers, text=response.text))

    def send(self, request: Request, *, stream: bool = False) -> httpx.Response:
        """The answer; with ``stream`` its body is yet to be read."""
        attempt = 0
        while True:
            verdict = self.settings.judge(request, self._try(request, stream), attempt)
            if isinstance(verdict, httpx.Response):
                return verdict
            time.sleep(verdict)
            attempt += 1

    def lines(self, call: LinesCall[T]) -> Iterator[T]:
        reader = LineReader()
        with contextlib.closing(self.send(call.request, stream=True)) as response:
            try:
                for data in response.iter_bytes():
                    yield from map(call.read, reader.feed(data))
            except httpx.RequestError as error:
                raise self.settings.connection_error(error) from error

    def _try(self, request: Request, stream: bool) -> Outcome:
        try:
            with self.settings.prepared(request) as arguments:
                response = self.http.send(self.http.build_request(**arguments), stream=True)
                if not (stream and response.is_success):
                    response.read()
                return response
        except httpx.RequestError as error:
            return error


class Stream(Generic[T]):
    """An answer while it is written. Iterate it, inside a ``with`` when the loop may be left early.

    The request is sent on entering the ``with`` or on the first step of the loop. ``adapter`` is known from then on,
    ``usage`` after the last delta. Leaving the ``with`` stops the server's work on it.
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
        """Stop reading; the server stops writing."""
        if self._response is not None:
            self._response.close()


def _calling(describe: Callable[P, Call[T]]) -> Callable[Concatenate[_Calls, P], T]:
    """An endpoint as a method that carries it out."""

    @described_by(describe)
    def method(self: _Calls, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._connection.run(describe(*args, **kwargs))

    return method


def _streaming(describe: Callable[P, StreamCall[T]]) -> Callable[Concatenate[_Calls, P], Stream[T]]:
    """An endpoint as a method that begins to carry it out."""

    @described_by(describe)
    def method(self: _Calls, /, *args: P.args, **kwargs: P.kwargs) -> Stream[T]:
        return Stream(self._connection, describe(*args, **kwargs))

    return method


def _listing(describe: Callable[P, LinesCall[T]]) -> Callable[Concatenate[_Calls, P], Iterator[T]]:
    """An endpoint as a method that reads what it lists while that is iterated."""

    @described_by(describe)
    def method(self: _Calls, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return self._connection.lines(describe(*args, **kwargs))

    return method


class _Calls:
    def __init__(self, connection: _Connection) -> None:
        self._connection = connection


class Adapters(_Calls):
    """What can be done to adapters: ``client.adapters``."""

    list = _calling(adapters.list)
    get = _calling(adapters.get)
    push = _calling(adapters.push)
    promote = _calling(adapters.promote)
    rollback = _calling(adapters.rollback)
    retire = _calling(adapters.retire)
    history = _calling(adapters.history)


class Feedback(_Calls):
    """What is said of answers: ``client.feedback``."""

    send = _calling(feedback.send)
    list = _calling(feedback.list)
    export = _listing(feedback.export)


class Interactions(_Calls):
    """Logged requests and answers: ``client.interactions``."""

    list = _calling(interactions.list)
    get = _calling(interactions.get)
    export = _listing(interactions.export)
    erase = _calling(interactions.erase)


class Experiments(_Calls):
    """Which version is better: ``client.experiments``."""

    start = _calling(experiments.start)
    list = _calling(experiments.list)
    get = _calling(experiments.get)
    set_weights = _calling(experiments.set_weights)
    stop = _calling(experiments.stop)


class Files(_Calls):
    """Rows to learn from, and results of jobs: ``client.files``."""

    upload = _calling(files.upload)
    list = _calling(files.list)
    get = _calling(files.get)
    content = _calling(files.content)
    delete = _calling(files.delete)


class Jobs(_Calls):
    """Training runs: ``client.jobs``."""

    create = _calling(jobs.create)
    list = _calling(jobs.list)
    get = _calling(jobs.get)
    cancel = _calling(jobs.cancel)
    events = _calling(jobs.events)
    checkpoints = _calling(jobs.checkpoints)


class LearningPolicies(_Calls):
    """When adapters learn by themselves: ``client.learning_policies``."""

    list = _calling(learning_policies.list)
    get = _calling(learning_policies.get)
    set = _calling(learning_policies.set)
    remove = _calling(learning_policies.remove)


class LogPolicies(_Calls):
    """What is logged, and for how long: ``client.log_policies``."""

    list = _calling(log_policies.list)
    set = _calling(log_policies.set)
    remove = _calling(log_policies.remove)


class Keys(_Calls):
    """What can be done to API keys: ``client.keys``."""

    create = _calling(keys.create)
    list = _calling(keys.list)
    revoke = _calling(keys.revoke)


class Client(_Calls):
    """A connection to a Graftwork server. Use it in a ``with``, or ``close`` it; threads may share one.

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
        transport: httpx.BaseTransport | None = None,
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

    health = _calling(service.health)
    ready = _calling(service.ready)
    metrics = _calling(service.metrics)
    models = _calling(service.models)
    model = _calling(service.model)
    chat = _calling(generation.chat)
    chat_stream = _streaming(generation.chat_stream)
    complete = _calling(generation.complete)
    complete_stream = _streaming(generation.complete_stream)
    score = _calling(generation.score)

    def close(self) -> None:
        self._connection.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
