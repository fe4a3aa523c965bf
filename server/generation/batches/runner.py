"""Which batches are carried on: those of one database by one API process, under a lease.

Several batches are carried on side by side and take turns with their requests, so that a small one does not wait for a
large one. The process that has the lease looks every second for batches that are new, cancelled or too late. When it
dies, another one takes over, at the latest when the lease has expired; ``Leases.check`` is part of every write.

::

    batch in the database ─▶ BatchRunner ─▶ BatchRun ─▶ BatchCapacity ─▶ GenerationService
                              (the lease)  (one batch)  (room for it)    (as a user's request)
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from contextlib import suppress
from typing import Final

from anyio import to_thread
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from graftwork.adapters.batches.batch import BatchError
from graftwork.adapters.errors import Conflict, Unavailable
from graftwork.adapters.storage.leases import Lease, Leases
from graftwork.server.generation.batches.run import BatchRun, BatchServices, cancel_all

log = logging.getLogger(__name__)

LEASE: Final = "batches"
LEASE_SECONDS: Final = 15.0
POLL_SECONDS: Final = 1.0

#: Batches that are carried on side by side; the others wait for their turn.
MAX_RUNS: Final = 16

#: A batch that cannot be carried on for an unexpected reason fails at the last of so many attempts.
MAX_FAILURES: Final = 3


class BatchRunner:
    """Carries batches on in the event loop of an API process, if no other process does.

    Args:
        services: What batches need.
        leases: Of the database.
    """

    def __init__(self, services: BatchServices, leases: Leases) -> None:
        self._services = services
        self._leases = leases
        self._owner = f"{os.uname().nodename}-{uuid.uuid4().hex[:12]}"
        self._lease: Lease | None = None
        self._renewed_at = -LEASE_SECONDS
        self._runs: dict[str, tuple[BatchRun, asyncio.Task[None]]] = {}
        self._failures: dict[str, int] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start, unless batches may not fill any seat here; call it in the running event loop."""
        if not self._services.capacity.num_usable:
            return
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._watch(), name="batches"),
            loop.create_task(self._services.capacity.yield_to_users(), name="batches-yield"),
        ]

    async def stop(self) -> None:
        """Stop; what is under way is asked again by the process that has the lease next."""
        await cancel_all(*self._tasks)
        await self._end_runs()
        if self._lease is not None:
            with suppress(Unavailable):  # it expires
                await to_thread.run_sync(self._leases.release, self._lease)

    async def _watch(self) -> None:
        while True:
            try:
                await self._look()
            except Unavailable as error:
                log.debug("batches cannot be looked at now; trying again: %s", error)  # every second, and others say so
            except Exception:
                log.exception("batches cannot be looked at; trying again")
            await asyncio.sleep(POLL_SECONDS)

    async def _look(self) -> None:
        """Begin batches that are not carried on yet, and tell the others how they stand in the database."""
        if not await self._has_lease():
            return
        found = await to_thread.run_sync(self._services.batches.unfinished, MAX_RUNS)
        now = {batch.id: batch for batch in found}
        for id, (run, _) in self._runs.items():
            run.look(now.pop(id, run.batch))
        for batch in now.values():
            self._begin(BatchRun(batch, self._services, self._fence))

    def _begin(self, run: BatchRun) -> None:
        id = run.batch.id
        task = asyncio.get_running_loop().create_task(self._carry_on(run), name=id)
        task.add_done_callback(lambda _: self._runs.pop(id))
        self._runs[id] = run, task

    async def _carry_on(self, run: BatchRun) -> None:
        id = run.batch.id
        try:
            batch = await run.carry_on()
            log.info("%s is %s: %d of %d requests answered", id, batch.status, batch.completed, batch.total)
            await to_thread.run_sync(self._services.batches.delete_results)
        except Exception as failure:
            if _passes(failure):
                log.warning("%s cannot be carried on at the moment: %s", id, failure)
                return
            log.exception("%s cannot be carried on", id)
            self._failures[id] = self._failures.get(id, 0) + 1
            if self._failures[id] >= MAX_FAILURES:
                error = BatchError(code="internal_error", message="the server failed at this batch; its log says why")
                await to_thread.run_sync(lambda: self._services.batches.fail(id, [error], fence=self._fence))

    async def _end_runs(self) -> None:
        await cancel_all(*(task for _, task in self._runs.values()))

    # -- the lease -------------------------------------------------------------------------------------------------
    async def _has_lease(self) -> bool:
        """Whether this process has the lease, which is renewed or acquired when it is time.

        What was begun under a lease ends with it.
        """
        if time.monotonic() - self._renewed_at < LEASE_SECONDS / 3:
            return self._lease is not None
        had, self._lease = self._lease, await to_thread.run_sync(self._renew)
        self._renewed_at = time.monotonic()
        if self._lease is None or had is None or had.token != self._lease.token:
            await self._end_runs()
            if self._lease is not None:
                await to_thread.run_sync(self._services.batches.delete_results)
        return self._lease is not None

    def _renew(self) -> Lease | None:
        renewed = None if self._lease is None else self._leases.renew(self._lease, seconds=LEASE_SECONDS)
        return renewed or self._leases.acquire(LEASE, self._owner, seconds=LEASE_SECONDS)

    def _fence(self, connection: Connection) -> None:
        if self._lease is None:
            raise Conflict("another process carries batches on")
        self._leases.check(connection, self._lease)


def _passes(failure: Exception) -> bool:
    """Whether something failed for the moment: another process carries batches on, or the database cannot be used."""
    passing = (Conflict, Unavailable, OperationalError)
    return isinstance(failure, passing) or (isinstance(failure, ExceptionGroup) and failure.split(passing)[1] is None)
