"""The keeper: periodic background work that only one process does, however many servers share a database.

A duty is a function and an interval. It is called under a lease: when this process dies, another server's keeper takes
the lease over, or the next server that starts. A duty may be interrupted and repeated. What must not happen twice is
written in one transaction with ``Leases.check`` on the lease that the duty gets.

It runs in the server's main process, which answers no requests.
"""

from __future__ import annotations

import logging
import os
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from graftwork.adapters.errors import Unavailable
from graftwork.adapters.storage.leases import Lease, Leases

log = logging.getLogger(__name__)

LEASE = "keeper"


@dataclass(slots=True)
class Duty:
    """A named function that the keeper calls every ``every`` seconds."""

    name: str
    run: Callable[[Lease], object]
    every: float


class Keeper:
    """Calls duties while it holds the lease.

    One thread renews the lease, and each duty has a thread of its own, so that no duty waits for another one's long
    work.

    Args:
        leases: Of the database.
        seconds: Lifetime of the lease: how long after this process's death another keeper takes over.
    """

    def __init__(self, leases: Leases, *, seconds: float = 15.0) -> None:
        self.seconds = seconds
        self._leases = leases
        self._owner = f"{os.uname().nodename}-{uuid.uuid4().hex[:12]}"
        self._duties: list[Duty] = []
        self._lease: Lease | None = None
        self._held = threading.Event()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def add_duty(self, name: str, run: Callable[[Lease], object], *, every: float) -> None:
        """Add a duty, before ``start``. An exception that it raises is logged, and it is called again when it is due.

        Args:
            name: For the log.
            run: Called with the lease.
            every: Seconds from the end of one call to the next; the first call is at once.
        """
        self._duties.append(Duty(name, run, every))

    def start(self) -> None:
        """Start the threads."""
        self._threads.append(threading.Thread(target=self._keep_lease, name="keeper-lease", daemon=True))
        for duty in self._duties:
            name = f"keeper-{duty.name}"
            self._threads.append(threading.Thread(target=self._run_periodically, args=(duty,), name=name, daemon=True))
        for thread in self._threads:
            thread.start()

    def stop(self, *, seconds: float = 5.0) -> None:
        """Call no further duty, wait ``seconds`` for each running one, and release the lease."""
        self._stopping.set()
        self._held.set()  # wakes the threads that wait for the lease
        for thread in self._threads:
            thread.join(seconds)

    def _keep_lease(self) -> None:
        while not self._stopping.is_set():
            try:
                self._lease = self._renewed() or self._leases.acquire(LEASE, self._owner, seconds=self.seconds)
            except Unavailable as error:
                self._lease = None
                log.warning("the keeper's lease cannot be renewed; trying again: %s", error)
            except Exception:
                # The lease may be ours until it expires, or not: begin no duty.
                self._lease = None
                log.exception("the keeper's lease cannot be renewed; trying again")
            if self._lease is not None:
                self._held.set()
            elif not self._stopping.is_set():
                self._held.clear()
            self._stopping.wait(self.seconds / 3)
        if self._lease is not None:
            with suppress(Unavailable):  # it expires
                self._leases.release(self._lease)

    def _renewed(self) -> Lease | None:
        return None if self._lease is None else self._leases.renew(self._lease, seconds=self.seconds)

    def _run_periodically(self, duty: Duty) -> None:
        while not self._stopping.is_set():
            self._held.wait()
            lease = self._lease
            if self._stopping.is_set():
                return
            if lease is None:  # lost this very moment
                self._stopping.wait(0.05)
                continue
            self._run_once(duty, lease)
            self._stopping.wait(duty.every)

    def _run_once(self, duty: Duty, lease: Lease) -> None:
        try:
            duty.run(lease)
        except Unavailable as error:
            log.warning("the keeper's duty %r cannot be done now; it is tried again: %s", duty.name, error)
        except Exception:
            log.exception("the keeper's duty %r failed; it is tried again in %.0f s", duty.name, duty.every)
