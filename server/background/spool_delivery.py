"""Delivers what was kept on this disk while the database was away: answers first, then what was said of them.

Each row gets into the database once. An answer is recognised by its id, feedback by its idempotency key, which all
feedback gets that may have to wait.
"""

from __future__ import annotations

import logging
import threading
from typing import Final

from graftwork.adapters.errors import GraftworkError, Unavailable
from graftwork.adapters.feedback.feedback import FeedbackLog
from graftwork.adapters.feedback.interactions import Interactions, NewInteraction
from graftwork.adapters.storage.database import REFUSALS
from graftwork.adapters.storage.spool import Spool, WaitingRow

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.5
AT_ONCE: Final = 256

_NEVER: Final = (GraftworkError, *REFUSALS, KeyError, TypeError, ValueError)
"""Errors of a row itself, which is refused or cannot be read. After any other it stays and is tried again."""


class SpoolDelivery:
    """The thread that empties one home's spool.

    Args:
        spool: What waits.
        interactions: Where answers go.
        feedback: Where feedback goes.
    """

    def __init__(self, spool: Spool, interactions: Interactions, feedback: FeedbackLog) -> None:
        self._spool = spool
        self._interactions = interactions
        self._feedback = feedback
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread. Call it after the last fork: threads do not survive one."""
        self._thread = threading.Thread(target=self._run, name="delivery", daemon=True)
        self._thread.start()

    def stop(self, *, seconds: float = 5.0) -> None:
        """End the thread. What still waits is delivered by the next server of this home."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(seconds)

    @property
    def is_done(self) -> bool:
        """Whether nothing waits."""
        return not self._spool.oldest(1)

    def deliver_all(self) -> None:
        """Deliver until nothing waits, and nothing that was read before can be written later.

        Raises:
            Unavailable: The database is away.
        """
        while self.deliver():
            pass

    def deliver(self) -> int:
        """Deliver the oldest rows. Whoever else delivers is waited for.

        Returns:
            How many; 0: nothing waits.

        Raises:
            Unavailable: The database is away.
        """
        with self._lock:
            rows = self._spool.oldest(AT_ONCE)
            if rows:
                self._write_interactions([row for row in rows if row.kind == "interaction"])
                for row in rows:
                    if row.kind == "feedback":
                        self._write_feedback(row)
                self._spool.remove(rows)
            return len(rows)

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            try:
                num_delivered = 0
                while not self._stopping.is_set() and (num_rows := self.deliver()):
                    num_delivered += num_rows
                if num_delivered:
                    log.info("%d rows that waited for the database are in it now", num_delivered)
            except Unavailable:
                continue
            except Exception:
                log.exception("what waits for the database cannot be delivered; trying again")

    def _write_interactions(self, rows: list[WaitingRow]) -> None:
        """Write answers. One that can never be written is given up, and does not keep the others."""
        try:
            if rows:
                self._interactions.write([NewInteraction.from_json(row.body) for row in rows])
        except Unavailable:
            raise
        except _NEVER:
            if len(rows) == 1:
                log.exception("an answer that waited for the database cannot be logged")
                return
            for row in rows:
                self._write_interactions([row])

    def _write_feedback(self, row: WaitingRow) -> None:
        try:
            self._feedback.deliver(row.body)
        except Unavailable:
            raise
        except GraftworkError as error:
            log.error("feedback that waited for the database was refused: %s", error.message)
        except _NEVER:
            log.exception("feedback that waited for the database cannot be stored")
