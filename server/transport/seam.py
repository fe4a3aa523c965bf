"""What LitServe insists on having between its processes, and the engine's line does without: queues, a transport, the
manager process that owns them. Each stands here as nothing.
"""

from __future__ import annotations

import asyncio
from typing import Any

import litserve as ls
from litserve.transport.base import MessageTransport

API_PATH = "/v1/chat/completions"
"""The name under which LitServe keeps the one worker; the routes are FastAPI's own."""


class NoSpec(ls.specs.base.LitSpec):
    """A specification without endpoints: with one set, LitServe adds no route of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.api_path = API_PATH

    @property
    def stream(self) -> bool:
        return True

    def __getstate__(self) -> dict[str, Any]:
        # LitServe pickles the spec into the worker, which needs nothing of it.
        return {"api_path": self.api_path}

    def decode_request(self, request: Any, context_kwargs: Any = None) -> Any:
        raise NotImplementedError("requests are decoded by the routes")

    def encode_response(self, output: Any, context_kwargs: Any = None) -> Any:
        raise NotImplementedError("responses are encoded by the routes")


class NoTransport(MessageTransport):
    """Nothing ever arrives: LitServe's reader sleeps."""

    def send(self, item: Any, consumer_id: int) -> None:
        raise NotImplementedError("the worker writes to its own connections")

    async def areceive(self, timeout: int | None = None, consumer_id: int | None = None) -> Any:
        await asyncio.Event().wait()


class NoManager:
    """LitServe shuts its manager down in the end; there is none."""

    def shutdown(self) -> None:
        return
