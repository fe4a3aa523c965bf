"""What of the engine batches may use: seats that users leave free.

Requests of batches fill the engine up to a share of its seats, together with whatever users have it compute; on an idle
engine one of them may take more. They take no place in the queue, so that no user is refused for them. When users need
all seats, the youngest requests are cancelled, and asked again later.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine
from typing import Any, Final

from graftwork.server.transport.engine import EngineProtocol

POLL_SECONDS: Final = 0.05


class BatchCapacity:
    """Starts requests of batches as there is room for them. All methods are called in one event loop.

    Args:
        engine: Says how many answers are under way.
        num_seats: Answers that run at once.
        share: The part of them up to which batches fill the engine, 0 to 1.
    """

    def __init__(self, engine: EngineProtocol, *, num_seats: int, share: float) -> None:
        self.num_seats = num_seats
        self.num_usable = math.ceil(num_seats * share)
        self._engine = engine
        self._running: dict[asyncio.Task[Any], int] = {}  # with their answers, oldest first
        self._turn = asyncio.Lock()  # batches take turns

    async def wait(self, num_answers: int) -> None:
        """Wait until there is room for a request of so many answers; ``start`` it before anything else is awaited."""
        async with self._turn:
            while not self._has_room(num_answers):
                if self._running:
                    await asyncio.wait(self._running, timeout=POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                else:
                    await asyncio.sleep(POLL_SECONDS)

    def start(self, request: Coroutine[Any, Any, None], num_answers: int) -> asyncio.Task[None]:
        """Begin to answer a request. The task may be cancelled for users."""
        task = asyncio.get_running_loop().create_task(request)
        self._running[task] = num_answers
        task.add_done_callback(self._running.pop)
        return task

    async def yield_to_users(self) -> None:
        """Cancel requests, the youngest first, whenever users need their seats or the server stops. Does not return."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            for task in self._excess():
                task.cancel()

    def _has_room(self, num_answers: int) -> bool:
        held = self._num_users() + sum(self._running.values())
        return self._engine.state == "ready" and (held == 0 or held + num_answers <= self.num_usable)

    def _num_users(self) -> int:
        """Answers that users wait for."""
        return self._engine.num_open() - self._engine.num_background()

    def _excess(self) -> list[asyncio.Task[Any]]:
        """The requests to be cancelled now."""
        if self._engine.state == "draining":
            return list(self._running)
        missing = self._num_users() + sum(self._running.values()) - self.num_seats
        excess: list[asyncio.Task[Any]] = []
        for task, num_answers in reversed(self._running.items()):
            if missing <= 0 or self._num_users() == 0:
                break
            excess.append(task)
            missing -= num_answers
        return excess
