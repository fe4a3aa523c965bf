"""Batches in the database: created by requests, carried on by one process at a time.

::

    validating ──▶ in_progress ──▶ finalizing ──▶ completed, expired or failed
        │   │           │
        │   └───────────┼──▶ cancelling ──▶ cancelled
        └──▶ failed     └──▶ (as above)

What carries a batch on writes each step in one transaction with a check that it still may (a ``Fence``), so that a
process that was taken for dead cannot write over its successor. A result is stored once, with the counts, and is never
computed again; after a kill the batch goes on behind what is stored.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Integer,
    Named,
    Row,
    Table,
    Text,
    TypedColumns,
    delete,
    func,
    insert,
    select,
    update,
)

from graftwork.adapters import names
from graftwork.adapters.access import audit
from graftwork.adapters.access.principal import Principal
from graftwork.adapters.batches.batch import (
    COMPLETION_WINDOWS,
    ENDED_STATUSES,
    Batch,
    BatchError,
    BatchResult,
    BatchStatus,
    NewBatch,
)
from graftwork.adapters.errors import Conflict, InvalidRequest, NotFound
from graftwork.adapters.learning.files import get_file
from graftwork.adapters.storage.database import Database, Page, UtcDateTime, check_limit, schema
from graftwork.adapters.storage.leases import Fence

_NEW_BATCH_FIELDS = tuple(field.name for field in fields(NewBatch))
_TIMED: Final = ("in_progress", "finalizing", "cancelling")
"""Statuses before the end, whose times are known when it comes."""

_READ_ROWS: Final = 100
_DELETE_ROWS: Final = 500


class _BatchColumns(TypedColumns):
    number: Named[int] = Column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    id: Named[str] = Column(Text)
    created_at = Column(UtcDateTime, nullable=False)
    created_by: Named[str] = Column(Text)
    key_id: Named[str] = Column(Text)
    idempotency_key: Named[str | None] = Column(Text)
    endpoint: Named[str] = Column(Text)
    input_file: Named[str] = Column(Text)
    completion_window: Named[str] = Column(Text)
    metadata = Column(JSON, nullable=False)
    status: Named[str] = Column(Text)
    expires_at = Column(UtcDateTime, nullable=False)
    in_progress_at = Column(UtcDateTime, nullable=True)
    finalizing_at = Column(UtcDateTime, nullable=True)
    completed_at = Column(UtcDateTime, nullable=True)
    failed_at = Column(UtcDateTime, nullable=True)
    expired_at = Column(UtcDateTime, nullable=True)
    cancelling_at = Column(UtcDateTime, nullable=True)
    cancelled_at = Column(UtcDateTime, nullable=True)
    total: Named[int] = Column(Integer)
    completed: Named[int] = Column(Integer)
    failed: Named[int] = Column(Integer)
    errors = Column(JSON, nullable=False)
    waiting: Named[str | None] = Column(Text)
    output_file: Named[str | None] = Column(Text)
    error_file: Named[str | None] = Column(Text)


class _ResultColumns(TypedColumns):
    batch: Named[str] = Column(Text, primary_key=True)
    line: Named[int] = Column(Integer, primary_key=True)
    failed: Named[bool] = Column(Boolean)
    content: Named[str] = Column(Text)


_batches = Table("batches", schema, _BatchColumns)
_results = Table("batch_results", schema, _ResultColumns)


class Batches:
    """The batches of one database, for any number of threads and processes.

    Methods that take an ``owner`` find the batches of that key alone, or everybody's for ``None``.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    # -- for the API -----------------------------------------------------------------------------------------------
    def create(self, new: NewBatch, who: Principal, *, idempotency_key: str | None = None) -> tuple[Batch, bool]:
        """Create a batch.

        Args:
            new: The batch.
            who: Who creates it, and owns it from then on.
            idempotency_key: If ``who`` has used it before for the same batch, that batch is returned.

        Returns:
            The batch, and whether it is new.

        Raises:
            InvalidRequest: There is no such file of this owner's, or it is none of requests.
            Conflict: The idempotency key was used for another batch.
        """
        if idempotency_key is not None:
            names.check_text(idempotency_key, param="idempotency_key", max_chars=256)
        id = f"batch_{secrets.token_hex(12)}"
        with self._database.write() as connection:
            same = (_batches.c.key_id == who.key_id, _batches.c.idempotency_key == idempotency_key)
            row = connection.execute(select(_batches).where(*same)).one_or_none() if idempotency_key else None
            if row is not None:
                return _repeated(_batch(row), new), False
            _check_file(connection, new.input_file, who.owner)
            now = datetime.now(UTC)
            connection.execute(
                insert(_batches).values(
                    {name: getattr(new, name) for name in _NEW_BATCH_FIELDS}
                    | {"id": id, "created_at": now, "created_by": who.name, "key_id": who.key_id}
                    | {"idempotency_key": idempotency_key, "metadata": dict(new.metadata), "status": "validating"}
                    | {"expires_at": now + COMPLETION_WINDOWS[new.completion_window], "errors": []}
                    | {"total": 0, "completed": 0, "failed": 0}
                )
            )
            audit.made(id)
            return _get(connection, id), True

    def get(self, id: str, *, owner: str | None = None) -> Batch:
        """A batch by its id.

        Raises:
            NotFound: It does not exist, or is another key's.
        """
        with self._database.read() as connection:
            return _get(connection, id, owner)

    def find(self, *, after: str | None = None, limit: int = 20, owner: str | None = None) -> Page[Batch]:
        """A page of batches, newest first.

        Args:
            after: The last id of the page before.
            limit: 1 to 100.
            owner: Of this key.

        Raises:
            InvalidRequest: ``limit`` is out of range, or ``after`` names no batch.
        """
        check_limit(limit)
        query = select(_batches).order_by(_batches.c.number.desc()).limit(limit + 1)
        if owner is not None:
            query = query.where(_batches.c.key_id == owner)
        with self._database.read() as connection:
            if after is not None:
                try:
                    query = query.where(_batches.c.number < _get(connection, after, owner).number)
                except NotFound:
                    raise InvalidRequest(
                        "after names no batch: give the id of the last one of the page before", param="after"
                    ) from None
            return Page.of([_batch(row) for row in connection.execute(query)], limit)

    def cancel(self, id: str, *, owner: str | None = None) -> Batch:
        """Begin to cancel a batch; what carries it on notices, and keeps what was answered. Idempotent.

        Raises:
            NotFound: It does not exist, or is another key's.
            Conflict: It has ended otherwise, or is about to.
        """
        with self._database.write() as connection:
            batch = _get(connection, id, owner)
            if batch.status in ("cancelling", "cancelled"):
                return batch
            if batch.ended or batch.status == "finalizing":
                raise Conflict(f"{id} is {batch.status} already: there is nothing left to cancel", code="batch_ended")
            return _move(connection, batch, "cancelling")

    # -- for what carries batches on -------------------------------------------------------------------------------
    def unfinished(self, limit: int) -> list[Batch]:
        """Batches that have not ended: those that are to be cancelled, then the oldest of every key, and so on."""
        place = func.row_number().over(partition_by=_batches.c.key_id, order_by=_batches.c.number)
        query = select(_batches).where(_batches.c.status.not_in(ENDED_STATUSES)).limit(limit)
        query = query.order_by(_batches.c.status != "cancelling", place, _batches.c.number)
        with self._database.read() as connection:
            return [_batch(row) for row in connection.execute(query)]

    def begin(self, id: str, total: int, *, fence: Fence) -> Batch:
        """Begin with the requests of a batch whose file was checked, unless it was cancelled meanwhile."""
        with self._database.write() as connection:
            fence(connection)
            batch = _get(connection, id)
            return batch if batch.status != "validating" else _move(connection, batch, "in_progress", total=total)

    def answered_lines(self, id: str) -> set[int]:
        """The lines of a batch's requests that have a result."""
        with self._database.read() as connection:
            return set(connection.scalars(select(_results.c.line).where(_results.c.batch == id)))

    def add_results(self, id: str, results: Sequence[BatchResult], *, fence: Fence) -> Batch:
        """Store what came of some requests; it is durable when this returns.

        Raises:
            Conflict: The batch has ended, or another process carries it on.
        """
        num_failed = sum(result.failed for result in results)
        with self._database.write() as connection:
            fence(connection)
            batch = _get(connection, id)
            if batch.ended:
                raise Conflict(f"{id} has ended: it takes no results any more", code="batch_ended")
            connection.execute(insert(_results), [{"batch": id, **asdict(result)} for result in results])
            completed = batch.completed + len(results) - num_failed
            return _change(connection, id, completed=completed, failed=batch.failed + num_failed)

    def finalize(self, id: str, errors: Sequence[BatchError] = (), *, fence: Fence) -> Batch:
        """Begin to write the files of a batch: everything is answered, or the rest is given up; with ``errors`` it
        failed. A batch that is being cancelled goes on being cancelled.
        """
        with self._database.write() as connection:
            fence(connection)
            batch = _get(connection, id)
            if batch.status != "in_progress":
                return batch
            return _move(connection, batch, "finalizing", errors=[asdict(error) for error in errors])

    def results(self, id: str, *, failed: bool) -> Iterator[BatchResult]:
        """What came of a batch's requests, in the order of their lines: the answers, or the errors."""
        last = 0
        while True:
            which = (_results.c.batch == id, _results.c.failed.is_(failed), _results.c.line > last)
            query = select(_results).where(*which).order_by(_results.c.line).limit(_READ_ROWS)
            with self._database.read() as connection:
                rows = connection.execute(query).all()
            for row in rows:
                yield BatchResult(line=row.line, failed=row.failed, content=row.content)
            if len(rows) < _READ_ROWS:
                return
            last = rows[-1].line

    def end(self, id: str, *, output_file: str | None, error_file: str | None, fence: Fence) -> Batch:
        """End a batch whose files are written, in the status that its ``outcome`` says."""
        with self._database.write() as connection:
            fence(connection)
            batch = _get(connection, id)
            files = {"output_file": output_file, "error_file": error_file, "waiting": None}
            return batch if batch.ended else _move(connection, batch, batch.outcome, **files)

    def fail(self, id: str, errors: Sequence[BatchError], *, fence: Fence) -> Batch:
        """End a batch without files: its input cannot be used, or it cannot be carried on."""
        with self._database.write() as connection:
            fence(connection)
            batch = _get(connection, id)
            if batch.ended:
                return batch
            if batch.status == "cancelling":
                return _move(connection, batch, "cancelled")
            return _move(connection, batch, "failed", errors=[asdict(error) for error in errors], waiting=None)

    def note_waiting(self, id: str, waiting: str | None, *, fence: Fence) -> None:
        """Note what a batch waits for, or that it does not wait any more; one that has ended does not."""
        with self._database.write() as connection:
            fence(connection)
            if not _get(connection, id).ended:
                _change(connection, id, waiting=waiting)

    def delete_results(self) -> None:
        """Delete the stored results of batches that have ended; they are in files. A few at a time: users write too."""
        ended = _results.c.batch.in_(select(_batches.c.id).where(_batches.c.status.in_(ENDED_STATUSES)))
        while True:
            with self._database.read() as connection:
                first = select(_results.c.batch).where(ended).limit(1)
                some = select(_results.c.batch, _results.c.line).where(_results.c.batch == first.scalar_subquery())
                rows = connection.execute(some.order_by(_results.c.line).limit(_DELETE_ROWS)).all()
            if not rows:
                return
            with self._database.write() as connection:
                last = rows[-1]
                these = (_results.c.batch == last.batch, _results.c.line <= last.line)
                connection.execute(delete(_results).where(*these))


# --- inside a transaction ---------------------------------------------------------------------------------------------


def unfinished_batch_using(connection: Connection, file_id: str) -> str | None:
    """The id of a batch that has not ended and needs this file, if there is one."""
    uses = (_batches.c.input_file == file_id, _batches.c.status.not_in(ENDED_STATUSES))
    return connection.scalar(select(_batches.c.id).where(*uses).limit(1))


def _check_file(connection: Connection, id: str, owner: str | None) -> None:
    try:
        file = get_file(connection, id, owner=owner)
    except NotFound as error:
        raise InvalidRequest(error.message, param="input_file_id", code=error.code) from None
    if file.purpose != "batch":
        raise InvalidRequest(
            f"{id} was uploaded with the purpose {file.purpose}: upload the requests of a batch with the purpose batch",
            param="input_file_id",
        )


def _repeated(known: Batch, new: NewBatch) -> Batch:
    for name in _NEW_BATCH_FIELDS:
        if getattr(known, name) != getattr(new, name):
            raise Conflict(
                f"this idempotency key was used before, for a batch with another {name}: use a new key for every batch",
                param="idempotency_key",
                code="idempotency_key_reused",
            )
    return known


def _move(connection: Connection, batch: Batch, status: BatchStatus, **values: Any) -> Batch:
    """Move a batch to another status, at a time that is not before any other of its times: clocks are set back."""
    times = [value for value in (getattr(batch, f"{known}_at", None) for known in _TIMED) if value is not None]
    now = max(datetime.now(UTC), batch.created_at, *times)
    return _change(connection, batch.id, status=status, **{f"{status}_at": now}, **values)


def _change(connection: Connection, id: str, **values: Any) -> Batch:
    connection.execute(update(_batches).where(_batches.c.id == id).values(values))
    return _get(connection, id)


def _get(connection: Connection, id: str, owner: str | None = None) -> Batch:
    row = connection.execute(select(_batches).where(_batches.c.id == id)).one_or_none()
    if row is None or owner not in (None, row.key_id):
        raise NotFound(
            f"there is no batch {names.quoted(id)}: graftwork batches list shows those there are",
            code="batch_not_found",
        )
    return _batch(row)


def _batch(row: Row[*tuple[Any, ...]]) -> Batch:
    return Batch(**{**row._mapping, "errors": tuple(BatchError(**error) for error in row.errors)})
