"""Empty implementations of what LitServe requires between its processes: a spec, a transport, a manager.

The API processes and the engine worker have connections of their own instead.
"""

from __future__ import annotations

import asyncio
from typing import Any

import litserve as ls
from litserve.transport.base import MessageTransport


class NoSpec(ls.specs.base.LitSpec):
    """A spec without endpoints: with one set, LitServe adds no route of its own.

    Args:
        number: Of the engine worker. LitServe knows each by a path; the routes are FastAPI's own.
    """

    def __init__(self, number: int = 0) -> None:
        super().__init__()
        self.api_path = f"/engines/{number}"

    @property
    def stream(self) -> bool:
        """LitServe asks for it; streams are the routes' own."""
        return True

    def __getstate__(self) -> dict[str, Any]:
        # LitServe pickles the spec into the worker, which needs nothing of it.
        return {"api_path": self.api_path}

    def decode_request(self, request: Any, context_kwargs: Any = None) -> Any:
        """Never called."""
        raise NotImplementedError("requests are decoded by the routes")

    def encode_response(self, output: Any, context_kwargs: Any = None) -> Any:
        """Never called."""
        raise NotImplementedError("responses are encoded by the routes")


class NoTransport(MessageTransport):
    """A transport over which nothing ever arrives."""

    def send(self, item: Any, consumer_id: int) -> None:
        """Never called."""
        raise NotImplementedError("the worker writes to its own connections")

    async def areceive(self, timeout: int | None = None, consumer_id: int | None = None) -> Any:
        """Never returns."""
        await asyncio.Event().wait()


class NoManager:
    """A multiprocessing manager that owns nothing."""

    def shutdown(self) -> None:
        """Do nothing."""
        return
