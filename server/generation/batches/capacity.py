"""What of the engine batches may use: seats that users leave free.

Requests of batches fill the engine up to a share of its seats, together with whatever users have it compute; one that
runs alone may take more. They take no place in the queue, so that no user is refused for them. When users need all
seats, the youngest requests are cancelled, and asked again later.
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

    Attributes:
        num_usable: Up to so many seats are filled.
    """

    def __init__(self, engine: EngineProtocol, *, num_seats: int, share: float) -> None:
        self.num_usable = math.ceil(num_seats * share)
        self._num_seats = num_seats
        self._engine = engine
        self._running: dict[asyncio.Task[Any], int] = {}  # with the seats that each takes, oldest first
        self._turn = asyncio.Lock()

    async def wait(self, num_answers: int) -> None:
        """Wait until there is room for a request of so many answers; ``start`` it before anything else is awaited.

        Batches take turns: one that waits for others' requests to end is waited for, one that waits for users is not.
        """
        num_seats = self._seats(num_answers)
        while True:
            async with self._turn:
                while self._users_leave(num_seats):
                    if not self._running or self._num_users() + self._num_held() + num_seats <= self.num_usable:
                        return
                    await asyncio.wait(self._running, timeout=POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(POLL_SECONDS)

    def start(self, request: Coroutine[Any, Any, None], num_answers: int) -> asyncio.Task[None]:
        """Begin to answer a request. The task may be cancelled for users."""
        task = asyncio.get_running_loop().create_task(request)
        self._running[task] = self._seats(num_answers)
        task.add_done_callback(self._running.pop)
        return task

    async def yield_to_users(self) -> None:
        """Cancel requests, the youngest first, whenever users need their seats or the server stops. Does not return."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            for task in self._excess():
                task.cancel()

    def _seats(self, num_answers: int) -> int:
        """Seats that a request takes; what it has beyond all seats waits in the engine."""
        return min(num_answers, self._num_seats)

    def _users_leave(self, num_seats: int) -> bool:
        """Whether users leave so many seats free, and a part of what batches may fill."""
        users = self._num_users()
        return self._engine.state == "ready" and users < self.num_usable and users + num_seats <= self._num_seats

    def _num_users(self) -> int:
        """Answers that users wait for."""
        return self._engine.num_open() - self._engine.num_background()

    def _num_held(self) -> int:
        """Seats that requests of batches take."""
        return sum(self._running.values())

    def _excess(self) -> list[asyncio.Task[Any]]:
        """The requests to be cancelled now."""
        if self._engine.state == "draining":
            return list(self._running)
        missing = self._num_users() + self._num_held() - self._num_seats
        excess: list[asyncio.Task[Any]] = []
        for task, num_seats in reversed(self._running.items()):
            if missing <= 0:
                break
            excess.append(task)
            missing -= num_seats
        return excess
