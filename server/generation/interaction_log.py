"""Writes rows of ended answers to the database, off the hot path: a bounded queue, and a thread that empties it.

``put`` never blocks. Rows are collected for a moment and written together, one commit for many. When the database
cannot keep up, or cannot be written at all, what does not fit is dropped, counted and logged, and answering goes on.
While a database on another machine is away, rows are kept on this one's disk (``spool``).
Rows that were not yet written when the process is killed are lost, some tenths of a second; feedback on those answers
is valid all the same, by its id. ``wait_until_durable`` closes even that gap for answers that get feedback.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from sqlalchemy.exc import DBAPIError

from graftwork.adapters.errors import Unavailable
from graftwork.adapters.feedback.interactions import Interactions, NewInteraction
from graftwork.adapters.feedback.policies import LogPolicies
from graftwork.adapters.storage.database import REFUSALS, UNREACHABLE
from graftwork.adapters.storage.spool import Spool
from graftwork.server.observability.metrics import Metrics

log = logging.getLogger(__name__)

BATCH_SECONDS = 0.2
MAX_BATCH_ROWS = 256
RETRY_SECONDS = 1.0
MAX_BYTES = 64 << 20
WARN_EVERY_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class EndedAnswer:
    """An answer that has ended, before its row is built.

    Attributes:
        id: The answer's.
        adapter: The adapter's name, or the base's id: log policies are about it.
        key_id: The caller's key.
        num_bytes: About what it takes in memory.
        outcome: Builds the row; called in the log's thread.
    """

    id: str
    adapter: str
    key_id: str
    num_bytes: int
    outcome: Callable[[], NewInteraction]


class InteractionLog:
    """One process's queue of rows, and the thread that writes them.

    Args:
        interactions: Where rows are written.
        policies: Which answers are logged.
        metrics: Counts dropped rows.
        spool: Where rows wait while the database is away; ``None``: they wait in the queue.
        max_waiting: The most rows in the queue.
    """

    def __init__(
        self,
        interactions: Interactions,
        policies: LogPolicies,
        metrics: Metrics,
        *,
        spool: Spool | None = None,
        max_waiting: int = 4096,
    ) -> None:
        self.max_waiting = max_waiting
        self._spool = spool
        self._interactions = interactions
        self._policies = policies
        self._metrics = metrics
        self._waiting: deque[EndedAnswer] = deque()
        self._unwritten: set[str] = set()  # ids in the queue, and of the batch that is being written
        self._num_bytes = 0
        self._changed = threading.Condition()
        self._flush_now = False
        self._stop_at: float | None = None
        self._closed = False
        self._thread: threading.Thread | None = None
        self._num_dropped = 0
        self._warned_at = -WARN_EVERY_SECONDS

    def start(self) -> None:
        """Start the thread. Call it after the last fork: threads do not survive one."""
        self._thread = threading.Thread(target=self._run, name="interaction-log", daemon=True)
        self._thread.start()

    def put(self, ended: EndedAnswer) -> None:
        """Queue an answer, or drop it if too many wait or the log was stopped. Never blocks."""
        with self._changed:
            has_room = len(self._waiting) < self.max_waiting and self._num_bytes + ended.num_bytes <= MAX_BYTES
            fits = has_room and not self._closed
            if fits:
                self._waiting.append(ended)
                self._unwritten.add(ended.id)
                self._num_bytes += ended.num_bytes
                if len(self._waiting) in (1, MAX_BATCH_ROWS):
                    self._changed.notify_all()
        if not fits:
            self._dropped(1)

    def wait_until_durable(self, id: str, *, seconds: float = 5.0) -> bool:
        """Wait until this answer's row is written, if it is queued.

        Returns:
            Whether it was within ``seconds``.
        """
        with self._changed:
            return self._until(lambda: id not in self._unwritten, seconds)

    def flush(self, *, seconds: float = 30.0) -> bool:
        """Wait until everything that was put before is written.

        Returns:
            Whether it was within ``seconds``.
        """
        with self._changed:
            before = set(self._unwritten)
            return self._until(lambda: before.isdisjoint(self._unwritten), seconds)

    def stop(self, *, seconds: float = 5.0) -> None:
        """Write what is queued and end the thread. What cannot be written within ``seconds`` is dropped."""
        with self._changed:
            self._stop_at = time.monotonic() + seconds
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _until(self, done: Callable[[], bool], seconds: float) -> bool:
        """Wait for ``done`` with the lock held, and let the thread write at once."""
        if done():
            return True
        self._flush_now = True
        self._changed.notify_all()
        return self._changed.wait_for(done, seconds)

    # -- in the thread -------------------------------------------------------------------------------------------
    def _run(self) -> None:
        while batch := self._take():
            written = self._write(batch)
            with self._changed:
                self._unwritten.difference_update(ended.id for ended in batch)
                self._num_bytes -= sum(ended.num_bytes for ended in batch)
                self._changed.notify_all()
            if not written:
                self._dropped(len(batch))

    def _take(self) -> list[EndedAnswer]:
        """The next batch; empty when the log was stopped and nothing is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stop_at is not None)
            self._changed.wait_for(
                lambda: self._flush_now or self._stop_at is not None or len(self._waiting) >= MAX_BATCH_ROWS,
                BATCH_SECONDS,
            )
            batch = [self._waiting.popleft() for _ in range(min(MAX_BATCH_ROWS, len(self._waiting)))]
            self._closed = not batch
            self._flush_now = self._flush_now and bool(self._waiting)
            return batch

    def _write(self, batch: Sequence[EndedAnswer]) -> bool:
        """Write a batch. Retries for as long as the server runs.

        Returns:
            False if it could not be written before the log had to stop.
        """
        reported = False
        while True:
            try:
                logged = [e for e in batch if self._policies.is_logged(adapter=e.adapter, key_id=e.key_id)]
                self._store(logged)
                return True
            except (Unavailable, DBAPIError) as error:
                if not reported:
                    log.error("interactions cannot be logged now; trying again until they can: %s", error)
                    reported = True
            with self._changed:
                if self._stop_at is None:
                    self._changed.wait_for(lambda: self._stop_at is not None, RETRY_SECONDS)
                elif time.monotonic() >= self._stop_at:
                    return False
                else:
                    self._changed.wait(RETRY_SECONDS / 10)

    def _store(self, logged: Sequence[EndedAnswer]) -> None:
        if not logged:
            return
        try:
            outcomes = [ended.outcome() for ended in logged]
            try:
                self._interactions.write(outcomes)
            except Unavailable as error:
                if self._spool is None or error.code != UNREACHABLE:
                    raise
                self._spool.keep("interaction", {outcome.id: asdict(outcome) for outcome in outcomes})
        except Exception as error:
            if isinstance(error, Unavailable | DBAPIError) and not isinstance(error, REFUSALS):
                raise  # the rows are right: the database takes them later
            if len(logged) == 1:
                log.exception("the interaction %s cannot be logged", logged[0].id)
                self._dropped(1)
                return
            # One row that the database refuses must not prevent the others.
            for ended in logged:
                self._store([ended])

    def _dropped(self, count: int) -> None:
        self._metrics.interactions_dropped(count)
        self._num_dropped += count
        if time.monotonic() - self._warned_at >= WARN_EVERY_SECONDS:
            self._warned_at = time.monotonic()
            log.warning(
                "%d interactions were not logged so far: the database does not keep up, or the server has stopped",
                self._num_dropped,
            )
