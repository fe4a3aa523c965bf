"""Shadow arms: copies of users' requests that an arm answers while the engine has capacity, for the log only.

A copy is made of a request that was answered without error and may be logged. It waits, with few others and not for
long, until few answers are under way; one copy is answered at a time, and cancelled when users need the engine. Copies
that are not answered are counted in the metrics.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from graftwork.adapters.errors import GraftworkError
from graftwork.adapters.experiments.assignment import is_sampled
from graftwork.adapters.experiments.experiment import Assignment, Experiment
from graftwork.server.observability.metrics import Metrics

log = logging.getLogger(__name__)

T = TypeVar("T")

#: The most copies that wait, and how long.
MAX_WAITING = 64
MAX_AGE_SECONDS = 60.0
POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class ShadowRequest(Generic[T]):
    """A request to be answered again.

    Attributes:
        of: The original, as the callback of ``ShadowQueue`` takes it.
        draw: The shadow arm that answers.
        made_at: When it was queued, in seconds of ``time.monotonic``.
    """

    of: T
    draw: Assignment
    made_at: float


class ShadowQueue(Generic[T]):
    """One process's queue of copies.

    Args:
        answer: Answers a copy and logs that; raises if it cannot.
        metrics: Counts copies: answered, failed, skipped.
        num_busy: How many answers are under way, copies included.
        max_busy: A copy starts while at most this many are.
    """

    def __init__(
        self,
        answer: Callable[[ShadowRequest[T]], Awaitable[None]],
        metrics: Metrics,
        *,
        num_busy: Callable[[], int],
        max_busy: int,
    ) -> None:
        self._answer = answer
        self._metrics = metrics
        self._num_busy = num_busy
        self._max_busy = max_busy
        self._waiting: deque[ShadowRequest[T]] = deque()
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the task; call it in the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="shadows")

    def offer(self, experiment: Experiment, id: str, of: T) -> None:
        """Queue a copy of the request that was answered as ``id``, for each shadow arm that samples it."""
        for arm in experiment.plan.shadows:
            share = arm.shadow or 0.0
            if is_sampled(experiment.salt, arm.name, id, share):
                draw = Assignment(experiment=experiment.name, arm=arm, probability=share)
                self._waiting.append(ShadowRequest(of, draw, time.monotonic()))
                self._arrived.set()
        while len(self._waiting) > MAX_WAITING:
            self._waiting.popleft()
            self._metrics.shadow("skipped")

    async def _run(self) -> None:
        while True:
            self._arrived.clear()
            while self._waiting:
                copy = self._waiting.popleft()
                while self._num_busy() > self._max_busy and not _too_old(copy):
                    await asyncio.sleep(POLL_SECONDS)
                if _too_old(copy):
                    self._metrics.shadow("skipped")
                    continue
                try:
                    self._metrics.shadow(await self._answered(copy))
                except Exception:
                    # Nobody waits for a copy, and the next one may succeed.
                    self._metrics.shadow("failed")
                    log.exception("a copy for the shadow arm %s could not be answered", copy.draw.arm.name)
            await self._arrived.wait()

    async def _answered(self, copy: ShadowRequest[T]) -> str:
        """Answer one copy; cancel it as soon as users need the engine. Returns the label for the metrics."""
        answering = asyncio.ensure_future(self._answer(copy))
        try:
            while not answering.done():
                await asyncio.wait({answering}, timeout=POLL_SECONDS)
                if self._num_busy() > self._max_busy + 1 and not answering.done():
                    return "skipped"
            answering.result()
        except GraftworkError as failure:
            log.debug("the shadow arm %s failed: %s", copy.draw.arm.name, failure)
            return "failed"
        finally:
            answering.cancel()
        return "answered"


def _too_old(copy: ShadowRequest[T]) -> bool:
    return time.monotonic() - copy.made_at > MAX_AGE_SECONDS
