"""LitServe's side of the line to the engine: its specification object, which owns no route and carries the messages of
the engine's client up and the worker's frames down.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

import litserve as ls
from litserve.utils import ResponseBufferItem

from graftwork.server.transport.client import EngineClient
from graftwork.server.transport.messages import MAILBOX, EngineMessage, Frame

if TYPE_CHECKING:
    from fastapi import Request
    from litserve import LitServer

log = logging.getLogger(__name__)


class LitServeSeam(ls.specs.base.LitSpec):
    """A specification without endpoints. LitServe keeps its queues by it; the routes are FastAPI's own."""

    def __init__(self, client: EngineClient) -> None:
        super().__init__()
        self.api_path = "/v1/chat/completions"  # names LitServe's queue
        self.client = client

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
        self.client.connect(self.response_queue_id or 0, self._send)

    def _send(self, message: EngineMessage) -> None:
        self.request_queue.put((self.response_queue_id, MAILBOX, time.monotonic(), message))

    def append(self, item: tuple[Frame, Any]) -> None:
        """LitServe hands every message from the worker to the buffer's queue: that is this object."""
        try:
            self.client.receive(item[0])
        except Exception:  # raised into LitServe's reader it would end the reader, and with it every answer
            log.exception("a frame from the engine could not be taken in")

    def decode_request(self, request: Request, context_kwargs: Any = None) -> Any:
        raise NotImplementedError("requests are decoded by the routes")

    def encode_response(self, output: Any, context_kwargs: Any = None) -> Any:
        raise NotImplementedError("responses are encoded by the routes")
