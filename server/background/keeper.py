"""The keeper: what must happen by itself, now and then, in one process only, however many servers share a database.

A duty is a function and a pause. It is called under a lease: when this process dies, another server's keeper goes on,
and the next server that starts on a home does. A duty must bear being broken off and being done again; what must never
be done twice at once is written in one transaction with `Leases.check` on the lease it is given.

Runs in the server's main process, whose interpreter answers no requests.
"""

from __future__ import annotations

import logging
import os
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from graftwork.adapters.storage.leases import Lease, Leases

log = logging.getLogger(__name__)

LEASE = "keeper"


@dataclass(slots=True)
class Duty:
    name: str
    run: Callable[[Lease], object]
    every: float


class Keeper:
    """One thread holds the lease, and each duty has its own: a guardrail waits for nobody's long work.

    ``seconds`` is how long after its death the keeper is missed.
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
        """Call ``run`` every ``every`` seconds, counted from its last end, the first time at once. Before `start`.

        What it raises is logged, and it is called again when it is due again.
        """
        self._duties.append(Duty(name, run, every))

    def start(self) -> None:
        self._threads.append(threading.Thread(target=self._hold, name="keeper-lease", daemon=True))
        for duty in self._duties:
            name = f"keeper-{duty.name}"
            self._threads.append(threading.Thread(target=self._work, args=(duty,), name=name, daemon=True))
        for thread in self._threads:
            thread.start()

    def stop(self, *, seconds: float = 5.0) -> None:
        """Begin no further duty, wait a little for one under way, and let others have the lease."""
        self._stopping.set()
        self._held.set()  # nobody waits for it any more
        for thread in self._threads:
            thread.join(seconds)

    def _hold(self) -> None:
        while not self._stopping.is_set():
            try:
                self._lease = self._renewed() or self._leases.acquire(LEASE, self._owner, seconds=self.seconds)
            except Exception:
                # It may be ours until it expires, and may not: begin nothing.
                self._lease = None
                log.exception("the keeper's lease cannot be renewed; trying again")
            if self._lease is not None:
                self._held.set()
            elif not self._stopping.is_set():
                self._held.clear()
            self._stopping.wait(self.seconds / 3)
        if self._lease is not None:
            self._leases.release(self._lease)

    def _renewed(self) -> Lease | None:
        return None if self._lease is None else self._leases.renew(self._lease, seconds=self.seconds)

    def _work(self, duty: Duty) -> None:
        while not self._stopping.is_set():
            self._held.wait()
            lease = self._lease
            if self._stopping.is_set():
                return
            if lease is None:  # lost this very moment
                self._stopping.wait(0.05)
                continue
            self._do(duty, lease)
            self._stopping.wait(duty.every)

    def _do(self, duty: Duty, lease: Lease) -> None:
        try:
            duty.run(lease)
        except Exception:
            log.exception("the keeper's duty %r failed; it is tried again in %.0f s", duty.name, duty.every)
