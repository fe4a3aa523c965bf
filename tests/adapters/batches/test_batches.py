"""Batches in the database: who sees them, how they move, and that every result is stored once."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from graftwork.adapters.access.keys import Role
from graftwork.adapters.access.principal import Principal
from graftwork.adapters.batches import batches as batches_module
from graftwork.adapters.batches.batch import Batch, BatchError, BatchResult, NewBatch
from graftwork.adapters.batches.batches import Batches, unfinished_batch_using
from graftwork.adapters.errors import Conflict, InvalidRequest, NotFound
from graftwork.adapters.learning.files import Files, Purpose
from graftwork.adapters.storage.database import Database, migrate
from graftwork.adapters.storage.leases import Leases

SHOP, BLOG = Principal("shop", Role.APP, "k-shop"), Principal("blog", Role.APP, "k-blog")
ANN = Principal("ann", Role.OPERATOR, "k-ann")
CHAT = "/v1/chat/completions"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "graftwork.db")
    migrate(database)
    yield database
    database.close()


@pytest.fixture
def batches(database: Database) -> Batches:
    return Batches(database)


def unfenced(_: Connection) -> None: ...


def upload(database: Database, tmp_path: Path, who: Principal = SHOP, purpose: Purpose = "batch") -> str:
    files = Files(database, tmp_path / "files")
    with files.upload() as upload:
        upload.write(b"{}\n")
        return files.keep(upload, filename="requests.jsonl", purpose=purpose, key_id=who.key_id).id


@pytest.fixture
def file(database: Database, tmp_path: Path) -> str:
    return upload(database, tmp_path)


@pytest.fixture
def begun(batches: Batches, file: str) -> Batch:
    batch, _ = batches.create(NewBatch(endpoint=CHAT, input_file=file), SHOP)
    return batches.begin(batch.id, 3, fence=unfenced)


def results(*lines: int, failed: bool = False) -> list[BatchResult]:
    return [BatchResult(line=line, failed=failed, content=f'{{"line":{line}}}') for line in lines]


def test_a_batch_is_seen_by_its_key_and_by_operators(
    batches: Batches, file: str, database: Database, tmp_path: Path
) -> None:
    first, is_new = batches.create(NewBatch(endpoint=CHAT, input_file=file, metadata={"a": "b"}), SHOP)
    assert is_new
    assert (first.status, first.total, first.metadata, first.created_by) == ("validating", 0, {"a": "b"}, "shop")
    assert first.expires_at - first.created_at == timedelta(hours=24)
    second, _ = batches.create(NewBatch(endpoint=CHAT, input_file=upload(database, tmp_path, BLOG)), BLOG)
    third, _ = batches.create(NewBatch(endpoint=CHAT, input_file=file), ANN)
    assert list(batches.find(owner=SHOP.owner)) == [first]
    assert list(batches.find(owner=ANN.owner)) == [third, second, first]
    page = batches.find(limit=1, owner=ANN.owner)
    assert (list(page), page.has_more) == ([third], True)
    assert list(batches.find(after=third.id, owner=ANN.owner)) == [second, first]
    assert batches.get(first.id, owner=SHOP.owner) == batches.get(first.id, owner=ANN.owner) == first
    for ask in (batches.get, batches.cancel):
        with pytest.raises(NotFound):
            ask(second.id, owner=SHOP.owner)
    with pytest.raises(InvalidRequest, match="after"):
        batches.find(after=second.id, owner=SHOP.owner)


def test_a_file_must_be_ones_own_and_of_requests(batches: Batches, database: Database, tmp_path: Path) -> None:
    theirs, rows = upload(database, tmp_path, BLOG), upload(database, tmp_path, ANN, "fine-tune")
    for who, id in ((SHOP, "file-nothing"), (SHOP, theirs), (SHOP, rows), (ANN, rows)):
        with pytest.raises(InvalidRequest) as refused:
            batches.create(NewBatch(endpoint=CHAT, input_file=id), who)
        assert refused.value.param == "input_file_id"
    assert list(batches.find()) == []


def test_one_idempotency_key_is_one_batch(batches: Batches, file: str) -> None:
    new = NewBatch(endpoint=CHAT, input_file=file)
    first, _ = batches.create(new, SHOP, idempotency_key="once")
    assert batches.create(new, SHOP, idempotency_key="once") == (first, False)
    with pytest.raises(Conflict, match="endpoint"):
        batches.create(replace(new, endpoint="/v1/completions"), SHOP, idempotency_key="once")
    assert batches.create(new, ANN, idempotency_key="once")[1]


def test_from_its_creation_to_its_files(batches: Batches, begun: Batch, database: Database) -> None:
    id = begun.id
    assert (begun.status, begun.total, begun.in_progress_at is not None) == ("in_progress", 3, True)
    with database.read() as connection:
        assert unfinished_batch_using(connection, begun.input_file) == id
    batches.add_results(id, results(3), fence=unfenced)
    now = batches.add_results(id, [*results(1), *results(2, failed=True)], fence=unfenced)
    assert (now.completed, now.failed, now.outcome) == (2, 1, "completed")
    assert batches.answered_lines(id) == {1, 2, 3}
    assert [result.line for result in batches.results(id, failed=False)] == [1, 3]
    assert [result.content for result in batches.results(id, failed=True)] == ['{"line":2}']
    assert batches.finalize(id, fence=unfenced).status == "finalizing"
    with pytest.raises(Conflict):
        batches.cancel(id)
    ended = batches.end(id, output_file="file-1", error_file=None, fence=unfenced)
    assert (ended.status, ended.output_file, ended.completed_at is not None) == ("completed", "file-1", True)
    assert batches.unfinished(10) == []
    with database.read() as connection:
        assert unfinished_batch_using(connection, begun.input_file) is None
    batches.delete_results()
    assert batches.answered_lines(id) == set()
    with pytest.raises(Conflict):
        batches.add_results(id, results(1), fence=unfenced)
    assert batches.fail(id, [BatchError(code="x", message="y")], fence=unfenced) == ended, "what has ended stays so"


def test_a_result_is_stored_once_or_nothing_is(batches: Batches, begun: Batch) -> None:
    batches.add_results(begun.id, results(1), fence=unfenced)
    with pytest.raises(IntegrityError):
        batches.add_results(begun.id, results(2, 1), fence=unfenced)
    assert batches.answered_lines(begun.id) == {1}
    assert batches.get(begun.id).completed == 1


def test_who_lost_the_lease_writes_nothing(batches: Batches, begun: Batch, database: Database) -> None:
    leases = Leases(database)
    lease = leases.acquire("batches", "first", seconds=60)
    assert lease is not None
    leases.release(lease)
    assert leases.acquire("batches", "second", seconds=60) is not None

    def fence(connection: Connection) -> None:
        leases.check(connection, lease)

    writes: list[Any] = [
        lambda: batches.begin(begun.id, 5, fence=fence),
        lambda: batches.add_results(begun.id, results(1), fence=fence),
        lambda: batches.finalize(begun.id, fence=fence),
        lambda: batches.end(begun.id, output_file="file-1", error_file=None, fence=fence),
        lambda: batches.fail(begun.id, [], fence=fence),
        lambda: batches.note_waiting(begun.id, "room", fence=fence),
    ]
    for write in writes:
        with pytest.raises(Conflict):
            write()
    assert batches.get(begun.id) == begun


@pytest.mark.parametrize(("answered", "outcome"), [(0, "cancelled"), (2, "cancelled"), (3, "cancelled")])
def test_a_cancelled_batch_keeps_what_was_answered(batches: Batches, begun: Batch, answered: int, outcome: str) -> None:
    assert batches.cancel(begun.id).status == batches.cancel(begun.id).status == "cancelling"
    if answered:
        batches.add_results(begun.id, results(*range(1, answered + 1)), fence=unfenced)
    assert batches.finalize(begun.id, fence=unfenced).status == "cancelling"
    ended = batches.end(begun.id, output_file="file-1", error_file="file-2", fence=unfenced)
    assert (ended.status, ended.completed) == (outcome, answered)
    assert batches.cancel(begun.id) == ended, "cancelling twice changes nothing"


def test_a_batch_may_be_cancelled_while_it_is_checked(batches: Batches, file: str) -> None:
    batch, _ = batches.create(NewBatch(endpoint=CHAT, input_file=file), SHOP)
    batches.cancel(batch.id)
    assert batches.begin(batch.id, 3, fence=unfenced).status == "cancelling"
    assert batches.fail(batch.id, [BatchError(code="x", message="y")], fence=unfenced).status == "cancelled"


def test_what_failed_and_what_is_late(batches: Batches, begun: Batch, file: str) -> None:
    late = batches.finalize(begun.id, fence=unfenced)
    assert late.outcome == "expired"
    assert batches.end(begun.id, output_file=None, error_file="file-1", fence=unfenced).expired_at is not None
    other, _ = batches.create(NewBatch(endpoint=CHAT, input_file=file), SHOP)
    batches.begin(other.id, 1, fence=unfenced)
    error = BatchError(code="invalid_api_key", message="gone")
    assert batches.finalize(other.id, [error], fence=unfenced).outcome == "failed"
    ended = batches.end(other.id, output_file=None, error_file=None, fence=unfenced)
    assert (ended.status, ended.errors) == ("failed", (error,))


def test_those_to_be_cancelled_come_first_and_keys_take_turns(batches: Batches, file: str) -> None:
    made = [batches.create(NewBatch(endpoint=CHAT, input_file=file), SHOP)[0].id for _ in range(4)]
    anns = batches.create(NewBatch(endpoint=CHAT, input_file=file), ANN)[0].id
    batches.cancel(made[3])
    assert [batch.id for batch in batches.unfinished(4)] == [made[3], made[0], anns, made[1]]


def test_its_times_are_in_order_whatever_the_clock_says(
    batches: Batches, begun: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Yesterday(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(UTC) - timedelta(days=1)

    with monkeypatch.context() as patched:
        patched.setattr(batches_module, "datetime", Yesterday)
        batches.finalize(begun.id, fence=unfenced)
        ended = batches.end(begun.id, output_file=None, error_file=None, fence=unfenced)
    times = [ended.created_at, ended.in_progress_at, ended.finalizing_at, ended.expired_at]
    assert None not in times
    assert times == sorted(times)  # type: ignore[type-var]


def test_the_record_is_append_only(batches: Batches, begun: Batch, database: Database) -> None:
    batches.finalize(begun.id, fence=unfenced)
    batches.end(begun.id, output_file=None, error_file=None, fence=unfenced)
    with closing(sqlite3.connect(str(database))) as connection:
        for statement in ("UPDATE batches SET status = 'validating'", "DELETE FROM batches"):
            with pytest.raises(sqlite3.IntegrityError):
                connection.execute(statement)


def test_many_results_are_read_and_deleted_in_parts(
    batches: Batches, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches_module, "_READ_ROWS", 7)
    monkeypatch.setattr(batches_module, "_DELETE_ROWS", 7)
    kept = []
    for total in (20, 21):
        batch, _ = batches.create(NewBatch(endpoint=CHAT, input_file=file), SHOP)
        batches.begin(batch.id, total, fence=unfenced)
        batches.add_results(batch.id, results(*range(1, total + 1)), fence=unfenced)
        assert [result.line for result in batches.results(batch.id, failed=False)] == list(range(1, total + 1))
        kept.append(batch.id)
    batches.fail(kept[0], [], fence=unfenced)
    batches.delete_results()
    assert (len(batches.answered_lines(kept[0])), len(batches.answered_lines(kept[1]))) == (0, 21)
