"""The home's folder of adapters as a cache of those in a bucket: fetched before the engine is asked, bounded in size.

The engine reads an adapter by its path in the home, when the first request for it comes, and again after host memory
has dropped it. So a folder may go only while the engine has no request for it and nothing of it in memory. Both are in
what the engine says of its residency, for it takes messages in the order in which they were sent: whatever was sent
before it was asked is counted. What was used since is younger than the question, and stays, too.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from anyio import CapacityLimiter, to_thread

from graftwork.adapters.errors import GraftworkError, NotFound, Unavailable
from graftwork.adapters.registry.artifacts import ArtifactStore
from graftwork.adapters.registry.bucket import ArtifactBucket
from graftwork.adapters.storage.durable import disk_full_as_unavailable
from graftwork.server.transport.engine import EngineProtocol
from graftwork.server.transport.pool import residents_of

log = logging.getLogger(__name__)

T = TypeVar("T")

FETCHING_THREADS: Final = 4
#: Between `ensure` and the message to the engine a request is tokenized, and its grammar made.
PREPARING_SECONDS: Final = 30.0
#: An adapter that is broken in the bucket is not fetched again for so long.
QUARANTINE_SECONDS: Final = 30.0
MIN_PAUSE_SECONDS: Final = 1.0


class ArtifactCache:
    """The local artifacts of one home. All methods must be called in the event loop of the one API process.

    Args:
        store: The home's artifacts.
        bucket: Has all of them.
        engine: Says what it has in memory.
        max_bytes: The size of ``store`` above which those that were used least recently are removed.
        preparing_seconds: How long after ``ensure`` the engine may be asked.
    """

    def __init__(
        self,
        store: ArtifactStore,
        bucket: ArtifactBucket,
        engine: EngineProtocol,
        *,
        max_bytes: int,
        preparing_seconds: float = PREPARING_SECONDS,
    ) -> None:
        self._store = store
        self._bucket = bucket
        self._engine = engine
        self._max_bytes = max_bytes
        self._preparing_seconds = preparing_seconds
        self._threads = CapacityLimiter(FETCHING_THREADS)
        self._last_used = dict.fromkeys(store.sizes(), 0.0)  # least recently used first
        self._fetches: dict[str, asyncio.Task[None]] = {}
        self._quarantined: dict[str, tuple[float, GraftworkError]] = {}
        self._pushed: Counter[str] = Counter()
        self._trimming: asyncio.Task[None] | None = None
        self._trim_later: asyncio.TimerHandle | None = None
        self._only_here: set[str] = set()

    async def ensure(self, digest: str) -> None:
        """Have an adapter's files in the home, fetched if they are not there: one fetch for all who wait for it.

        Raises:
            GraftworkError: The bucket does not have it, or has something else under its name.
            Unavailable: The bucket does not answer, or the disk is full.
        """
        if not self._is_here(digest):
            fetch = self._fetches.get(digest)
            if fetch is None:
                self._check_quarantine(digest)
                fetch = self._fetches[digest] = asyncio.create_task(self._fetch(digest))
                fetch.add_done_callback(_take_note)  # also if nobody waits any more
            await asyncio.shield(fetch)  # a client that leaves takes it from nobody else
        self._use(digest)

    @contextmanager
    def pushing(self, digest: str) -> Iterator[None]:
        """A context in which a pushed adapter stays in the home, although the bucket does not have it yet."""
        self._pushed[digest] += 1
        try:
            yield
        finally:
            self._pushed[digest] -= 1
            if self._is_here(digest):
                self._quarantined.pop(digest, None)
                self._only_here.discard(digest)
                self._use(digest)
                self._trim_soon()

    async def upload(self, digest: str) -> None:
        """Put a published artifact into the bucket; it is complete when this returns. Call it within ``pushing``.

        Raises:
            Unavailable: The bucket does not answer.
        """
        await self._in_thread(self._bucket.upload, self._store.path(digest))

    def _is_here(self, digest: str) -> bool:
        try:
            self._store.path(digest)
        except NotFound:
            return False
        return True

    def _check_quarantine(self, digest: str) -> None:
        until, error = self._quarantined.get(digest, (0.0, None))
        if error is not None and time.monotonic() < until:
            raise GraftworkError(error.message)
        self._quarantined.pop(digest, None)

    async def _fetch(self, digest: str) -> None:
        try:
            await self._in_thread(self._download, digest)
            self._use(digest)
            self._trim_soon()
        except Unavailable:
            raise
        except GraftworkError as error:
            self._quarantined[digest] = (time.monotonic() + QUARANTINE_SECONDS, error)
            raise
        finally:
            del self._fetches[digest]

    def _download(self, digest: str) -> None:
        with disk_full_as_unavailable("adapter"):
            self._bucket.download(digest, self._store)

    def _use(self, digest: str) -> None:
        self._last_used.pop(digest, None)
        self._last_used[digest] = time.monotonic()

    # -- the bound -------------------------------------------------------------------------------------------------
    def _trim_soon(self) -> None:
        if self._trimming is None or self._trimming.done():
            self._trimming = asyncio.create_task(self._trim())

    async def _trim(self) -> None:
        """Remove what was used least recently, until the rest fits. What is in use is looked at again later."""
        if self._trim_later is not None:
            self._trim_later.cancel()
        try:
            sizes = await self._in_thread(self._store.sizes)
        except OSError as error:
            log.warning("the adapters of the home cannot be looked at: %s", error)
            return
        excess = sum(sizes.values()) - self._max_bytes
        if excess <= 0:
            return
        pause = max(self._preparing_seconds, MIN_PAUSE_SECONDS)
        self._trim_later = asyncio.get_running_loop().call_later(pause, self._trim_soon)
        asked_at = time.monotonic()
        try:
            resident = await residents_of(self._engine)
            for digest in [digest for digest in self._last_used if digest in sizes and digest not in resident]:
                if excess <= 0 or self._is_used(digest, asked_at) or not await self._is_in_bucket(digest):
                    continue
                await self._engine.release(digest)
                if self._is_here(digest) and not self._is_used(digest, asked_at):  # still
                    await self._remove(digest)
                    excess -= sizes[digest]
        except Unavailable as error:
            log.warning("no adapter is removed from the home for now: %s", error.message)
            return
        except OSError as error:
            log.warning("an adapter cannot be removed from the home; trying again: %s", error)
            return
        if excess > 0:
            log.info("the adapters in use are %.1f MB more than --artifact-cache-gb", excess / 1e6)

    async def _is_in_bucket(self, digest: str) -> bool:
        if digest in self._only_here or not self._is_here(digest):
            return False
        if await self._in_thread(self._bucket.holds, self._store.path(digest)):
            return True
        self._only_here.add(digest)
        log.warning("%s stays in the home: the bucket does not have it. Push it again", digest)
        return False

    def _is_used(self, digest: str, asked_at: float) -> bool:
        return self._pushed[digest] > 0 or self._last_used[digest] > asked_at - self._preparing_seconds

    async def _remove(self, digest: str) -> None:
        removed = self._store.unpublish(digest)  # here and not in a thread: no request can come in between
        del self._last_used[digest]
        await self._in_thread(self._store.discard, removed)
        log.info("removed %s from the home: the bucket has it", digest)

    async def _in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        """Call a blocking function in one of a few threads."""
        return await to_thread.run_sync(function, *arguments, limiter=self._threads)


def _take_note(task: asyncio.Task[None]) -> None:
    """Look at how a task ended; asyncio complains of errors that nobody has seen."""
    if not task.cancelled():
        task.exception()
