"""Decides whether an engine worker that ended is started again. Plain Python: the clock and the process are given."""

from __future__ import annotations

from typing import Final, Literal

from graftwork.server.transport.worker import EXIT_CONFIGURATION

#: An engine worker that dies this often in a row before it was ready is not started again at once.
MAX_FAILED_STARTS: Final = 3

#: While others serve, it is tried again after so long.
RETRY_SECONDS: Final = 60.0


class WorkerRestarts:
    """The starts of one engine worker."""

    def __init__(self) -> None:
        self._num_ready = 0
        self._num_failed = 0
        self._retry_at: float | None = None

    def decide(
        self, exit_code: int | None, *, num_ready: int, others_serve: bool, now: float
    ) -> Literal["start", "wait", "stop"]:
        """What to do about the worker, which does not run; asked again and again until it is started.

        Args:
            exit_code: With which it ended.
            num_ready: How often it has been ready.
            others_serve: Whether another engine worker is left.
            now: In seconds, of a clock that never goes back.

        Returns:
            ``start`` it again; ``wait``, since it cannot start at the moment; or ``stop`` the server: it has never
            worked, or it was the last.
        """
        if self._retry_at is not None:
            if now < self._retry_at:
                return "wait"
            self._retry_at = None
            return "start"
        was_ready, self._num_ready = num_ready > self._num_ready, num_ready
        self._num_failed = 0 if was_ready else self._num_failed + 1
        if exit_code != EXIT_CONFIGURATION and self._num_failed < MAX_FAILED_STARTS:
            return "start"
        if not num_ready or not others_serve:
            return "stop"
        self._retry_at = now + RETRY_SECONDS
        return "wait"
