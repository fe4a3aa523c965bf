"""One batch, carried on from wherever it stands to its end.

Its requests are asked in the order of the file, as users ask them: routed when they are asked, drawn by experiments,
logged, counted, under the key that made the batch. A result that is stored is final. Requests that are under way when
the process is killed, when users need the engine, or when the engine is lost, are asked again.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final, TypeVar, get_args

from anyio import to_thread
from sqlalchemy.exc import OperationalError

from graftwork.adapters.access.principal import Principal
from graftwork.adapters.access.scope import entered
from graftwork.adapters.batches.batch import Batch, BatchError, BatchResult
from graftwork.adapters.batches.batches import Batches
from graftwork.adapters.errors import GraftworkError, InvalidRequest, LimitExceeded, NotFound, Unavailable, first_line
from graftwork.adapters.learning.files import Files
from graftwork.adapters.storage.durable import DISK_FULL
from graftwork.adapters.storage.leases import Fence
from graftwork.adapters.storage.objects import STORE_AWAY
from graftwork.server.generation.batches.capacity import BatchCapacity
from graftwork.server.generation.batches.endpoints import ENDPOINTS, AnsweringServices, RequestBody
from graftwork.server.generation.batches.input import BatchInput
from graftwork.server.generation.batches.output import write_files
from graftwork.server.observability.metrics import Metrics
from graftwork.server.openai.batch_lines import BatchRequest, error_response_line, response_line
from graftwork.server.transport.engine import EngineState

log = logging.getLogger(__name__)

T = TypeVar("T")

#: A request during which the engine was lost so often is answered with that error.
MAX_ATTEMPTS: Final = 3

#: Requests of a batch that are under way, or answered and not stored yet.
MAX_UNSTORED: Final = 64

#: Lines that are read from the file at once.
READ_AHEAD: Final = 32

RETRY_SECONDS: Final = 1.0

#: A batch whose key has no budget left looks again after so many seconds at the latest.
MAX_PAUSE_SECONDS: Final = 15.0


@dataclass(frozen=True, kw_only=True)
class BatchServices:
    """What batches need to be carried on.

    Attributes:
        batches: Where they are stored.
        files: Where their files are.
        answering: Answers requests.
        capacity: Lets requests begin.
        metrics: Counts results.
        find_principal: The caller with a key's id, as long as it may call.
    """

    batches: Batches
    files: Files
    answering: AnsweringServices
    capacity: BatchCapacity
    metrics: Metrics
    find_principal: Callable[[str], Principal | None]


class BatchRun:
    """Carries one batch on.

    Args:
        batch: As it stands.
        services: What that needs.
        fence: Called in the transaction of every write.
    """

    def __init__(self, batch: Batch, services: BatchServices, fence: Fence) -> None:
        self.batch = batch
        self._services = services
        self._fence = fence
        self._stopped = asyncio.Event()
        self._errors: tuple[BatchError, ...] = ()
        self._unread: Iterator[BatchRequest] = iter(())
        self._read: deque[BatchRequest] = deque()
        self._again: deque[BatchRequest] = deque()
        self._attempts: dict[int, int] = {}
        self._waits: LimitExceeded | None = None
        self._noted = False
        self._active: dict[asyncio.Task[None], BatchRequest] = {}
        self._unstored = asyncio.Semaphore(MAX_UNSTORED)
        self._results: asyncio.Queue[BatchResult] = asyncio.Queue()

    async def carry_on(self) -> Batch:
        """Carry the batch on to its end, and return it.

        Raises:
            ExceptionGroup: Of ``Conflict``: another process does that by now.
        """
        if self.batch.status == "validating":
            self.batch = await self._validate()
        if self.batch.status == "in_progress":
            await self._answer_all()
            self.batch = await self._insist(self._services.batches.finalize, self.batch.id, self._errors)
        if not self.batch.ended:
            self.batch = await self._write_files()
        return self.batch

    def look(self, batch: Batch) -> None:
        """Stop answering if the batch, as it was read just now, was cancelled, is too late, or its key is not valid."""
        if self._services.find_principal(batch.key_id) is None:
            message = "the key that made this batch is not valid any more: make it again with another key"
            self._errors = (BatchError(code="invalid_api_key", message=message),)
        if self._errors or batch.status == "cancelling" or datetime.now(UTC) >= batch.expires_at:
            self._stopped.set()

    # -- the input -------------------------------------------------------------------------------------------------
    async def _validate(self) -> Batch:
        id = self.batch.id
        try:
            total, errors = await to_thread.run_sync((await self._input()).check)
        except (NotFound, FileNotFoundError):
            total, errors = 0, [BatchError(code="file_not_found", message="the input file is gone: upload it again")]
        if errors:
            return await self._insist(self._services.batches.fail, id, errors)
        return await self._insist(self._services.batches.begin, id, total)

    async def _input(self) -> BatchInput:
        files = self._services.files
        file = await to_thread.run_sync(files.get, self.batch.input_file)
        return BatchInput(await self._retried(lambda: files.fetch(file)), self.batch.endpoint)

    # -- the answers -----------------------------------------------------------------------------------------------
    async def _answer_all(self) -> None:
        """Answer all requests that have no result, or as many as there is time for; store the results."""
        answered = await to_thread.run_sync(self._services.batches.answered_lines, self.batch.id)
        self._unread = (await self._input()).requests(without=answered)
        self.look(self.batch)
        try:
            async with asyncio.TaskGroup() as tasks:
                storing = tasks.create_task(self._store_results())
                asking = tasks.create_task(self._ask_all())
                stopping = tasks.create_task(self._stopped.wait())
                await asyncio.wait((asking, stopping), return_when=asyncio.FIRST_COMPLETED)
                await cancel_all(asking, stopping, *self._active)
                await self._results.join()
                storing.cancel()
        finally:
            await cancel_all(*self._active)

    async def _ask_all(self) -> None:
        while True:
            if self._waits is not None:
                await self._wait_for_budget(self._waits)
            request = await self._next()
            if request is not None:
                await self._ask(request)
            elif self._active:  # one of them may have to be asked again
                await asyncio.wait(self._active, return_when=asyncio.FIRST_COMPLETED)
            else:
                return

    async def _wait_for_budget(self, error: LimitExceeded) -> None:
        """Wait for a budget: till it is said to have room, but not so long that a change of it would not be seen."""
        if not self._noted:
            await self._note_waiting(error.message)
        self._noted, self._waits = True, None
        await asyncio.sleep(min(error.retry_after, MAX_PAUSE_SECONDS))

    async def _next(self) -> BatchRequest | None:
        """The next request to be asked; ``None``: there is none at the moment."""
        if self._again:
            return self._again.popleft()
        if not self._read:
            self._read.extend(await to_thread.run_sync(lambda: list(islice(self._unread, READ_AHEAD))))
        if not self._read:
            return None
        await self._unstored.acquire()
        return self._read.popleft()

    async def _ask(self, request: BatchRequest) -> None:
        """Begin to answer a request as soon as there is room."""
        capacity = self._services.capacity
        try:
            body = ENDPOINTS[self.batch.endpoint].parse(request.body)
        except InvalidRequest as error:
            self._refuse(request, error)
            return
        await capacity.wait(body.num_answers)
        task = capacity.start(self._answer(request, body), body.num_answers)
        self._active[task] = request
        task.add_done_callback(self._end)

    async def _answer(self, request: BatchRequest, body: RequestBody) -> None:
        services, batch = self._services, self.batch
        try:
            # Found before the look: a key that ends in between is seen there, and its batch is stopped.
            who, endpoint = services.find_principal(batch.key_id), ENDPOINTS[batch.endpoint]
            self.look(batch)
            if who is None or self._stopped.is_set():
                return
            with entered(who.scope):
                answer = await endpoint.answer(services.answering, body, batch.key_id, len(request.body))
        except LimitExceeded as error:
            self._pause(request, error)
        except (Unavailable, OperationalError) as error:
            await self._try_again(request, error)
        except GraftworkError as error:
            self._refuse(request, error)
        except Exception:
            log.exception("line %d of %s failed", request.line, batch.id)
            self._refuse(request, GraftworkError("the server failed at this request; its log says why"))
        else:
            if self._noted and self._waits is None:
                self._noted = False
                await self._note_waiting(None)
            content = response_line(batch.id, request, 200, _request_id(), answer)
            self._results.put_nowait(BatchResult(line=request.line, failed=False, content=content))

    async def _try_again(self, request: BatchRequest, error: Unavailable | OperationalError) -> None:
        """Ask a request again a moment later, unless it may be its own fault that it is not answered."""
        if isinstance(error, OperationalError) or error.code not in get_args(EngineState):
            self._attempts[request.line] = self._attempts.get(request.line, 0) + 1
        if self._attempts.get(request.line, 0) >= MAX_ATTEMPTS:
            self._refuse(request, error if isinstance(error, Unavailable) else Unavailable(_reason(error)))
            return
        await asyncio.sleep(RETRY_SECONDS)
        self._again.append(request)

    def _pause(self, request: BatchRequest, error: LimitExceeded) -> None:
        """Ask a request again when its key's budget has room, and no other one before: unless it never has."""
        if error.never:
            self._refuse(request, error)
            return
        self._again.append(request)
        self._waits = error

    def _end(self, task: asyncio.Task[None]) -> None:
        request = self._active.pop(task)
        if task.cancelled():
            self._again.append(request)

    def _refuse(self, request: BatchRequest, error: GraftworkError) -> None:
        content = error_response_line(self.batch.id, request, _request_id(), error)
        self._results.put_nowait(BatchResult(line=request.line, failed=True, content=content))

    async def _store_results(self) -> None:
        """Store results as they come, those of one moment together. Does not return."""
        while True:
            results = [await self._results.get()]
            while not self._results.empty():
                results.append(self._results.get_nowait())
            await self._insist(self._services.batches.add_results, self.batch.id, results)
            for result in results:
                self._services.metrics.batch_result("failed" if result.failed else "completed")
                self._results.task_done()
                self._unstored.release()

    # -- what is written -------------------------------------------------------------------------------------------
    async def _write_files(self) -> Batch:
        services, batch = self._services, self.batch
        output, error = await self._retried(lambda: write_files(services.batches, services.files, batch))
        return await self._insist(services.batches.end, batch.id, output_file=output, error_file=error)

    async def _insist(self, write: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Call one of the writes of ``Batches``."""
        return await self._retried(lambda: write(*arguments, **options, fence=self._fence))

    async def _retried(self, work: Callable[[], T]) -> T:
        """Call ``work`` in a thread, again while the disk is full, or the bucket or database cannot be used."""
        waits = False
        while True:
            try:
                done = await to_thread.run_sync(work)
            except (Unavailable, OperationalError) as error:
                if not waits:
                    log.error("%s cannot be written now, and is tried again until it can: %s", self.batch.id, error)
                    await self._note_waiting(_reason(error))
                waits = True
                await asyncio.sleep(RETRY_SECONDS)
            else:
                if waits:
                    await self._note_waiting(None)
                return done

    async def _note_waiting(self, waiting: str | None) -> None:
        """Let people see what the batch waits for, if that can be written."""
        note = self._services.batches.note_waiting
        with suppress(Unavailable, OperationalError):
            await to_thread.run_sync(lambda: note(self.batch.id, waiting, fence=self._fence))


def _reason(error: Unavailable | OperationalError) -> str:
    if isinstance(error, Unavailable) and error.code == DISK_FULL:
        return "the server's disk is full: the batch goes on when there is room"
    if isinstance(error, Unavailable) and error.code == STORE_AWAY:
        return "the object store does not answer: the batch goes on when it does"
    return f"the database cannot be written: {first_line(error)}"


async def cancel_all(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks, and wait for their ends."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _request_id() -> str:
    return f"req_{uuid.uuid4().hex}"
