"""An adapter that gives the async client the interface of the sync one, so that tests of behaviour run against both."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from graftwork import AsyncClient, Client
from graftwork.clients.async_client import AsyncStream, _AsyncResource


class OnLoop:
    """Runs whatever must be awaited of ``wrapped`` on a loop in a thread of its own."""

    def __init__(self, wrapped: Any, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._wrapped = wrapped
        self._loop = loop or asyncio.new_event_loop()
        if loop is None:
            threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._wrapped, name)
        if callable(value):
            return lambda *args, **kwargs: self._settle(value(*args, **kwargs))
        return OnLoop(value, self._loop) if isinstance(value, _AsyncResource) else value

    def _settle(self, value: Any) -> Any:
        if inspect.isawaitable(value):
            return asyncio.run_coroutine_threadsafe(_awaited(value), self._loop).result(30)
        return OnLoop(value, self._loop) if isinstance(value, AsyncStream | AsyncIterator) else value

    def __enter__(self) -> OnLoop:
        self._settle(self._wrapped.__aenter__())
        return self

    def __exit__(self, *exception: object) -> None:
        self._settle(self._wrapped.__aexit__(*exception))
        if isinstance(self._wrapped, AsyncClient):
            self._settle(self._loop.shutdown_asyncgens())
            self._loop.call_soon_threadsafe(self._loop.stop)

    def __iter__(self) -> Iterator[Any]:
        steps = self._wrapped.__aiter__()
        while (item := self._settle(_step(steps))) is not None:
            yield item


async def _step(steps: AsyncIterator[Any]) -> Any:
    return await anext(steps, None)


async def _awaited(value: Any) -> Any:
    return await value


def _async_client(*args: Any, **kwargs: Any) -> Any:
    return OnLoop(AsyncClient(*args, **kwargs))


MAKERS: dict[str, Callable[..., Any]] = {"sync": Client, "async": _async_client}
