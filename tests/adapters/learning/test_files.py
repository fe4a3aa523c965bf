"""Uploaded files: durable before they are acknowledged; refused or failed uploads leave nothing behind."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from graftwork.adapters.errors import Conflict, GraftworkError, InvalidRequest, NotFound, TooLarge, Unavailable
from graftwork.adapters.learning.files import File, Files
from graftwork.adapters.storage.database import Database, migrate

ROWS = b'{"prompt": "a", "completion": "b"}\n'


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "graftwork.db")
    migrate(database)
    yield database
    database.close()


@pytest.fixture
def files(database: Database, tmp_path: Path) -> Files:
    return Files(database, tmp_path / "files", max_bytes=1000)


def keep(files: Files, content: bytes = ROWS, filename: str = "rows.jsonl", **given: Any) -> File:
    with files.upload() as upload:
        for start in range(0, len(content), 7):
            upload.write(content[start : start + 7])
        return files.keep(upload, filename=filename, **{"purpose": "fine-tune", "key_id": "k", **given})


def names_on_disk(files: Files) -> list[str]:
    return sorted(path.name for path in files.root.rglob("*") if path.is_file())


def test_a_file_is_stored_listed_read_and_deleted(files: Files) -> None:
    first, second = keep(files), keep(files, b"question,answer\na,b\n", "../../etc/rows.csv")
    assert files.get(first.id) == first
    assert (first.num_bytes, first.digest) == (len(ROWS), f"sha256:{hashlib.sha256(ROWS).hexdigest()}")
    assert files.path(first).read_bytes() == ROWS
    assert (second.filename, files.path(second).parent, files.path(second).suffix) == ("rows.csv", files.root, ".csv")
    assert list(files.find()) == [second, first]
    assert list(files.find(ascending=True)) == [first, second]
    page = files.find(limit=1)
    assert page.has_more
    assert list(files.find(after=page[0].id)) == [first]
    assert list(files.find(purpose="fine-tune-results")) == []
    with pytest.raises(Conflict, match="ftjob-1"):
        files.delete(first.id, users=[lambda connection, id: "ftjob-1" if id == first.id else None])
    files.delete(first.id)
    with pytest.raises(NotFound):
        files.get(first.id)
    assert list(files.find()) == [second]
    assert names_on_disk(files) == [files.path(second).name]
    assert list(files.find(after=first.id, ascending=True)) == [second], "a cursor may have been deleted"


@pytest.mark.parametrize(
    ("content", "filename", "given", "problem"),
    [
        (b"", "rows.jsonl", {}, InvalidRequest),
        (b" \n\n", "rows.jsonl", {}, InvalidRequest),
        (b"not json\n", "rows.jsonl", {}, InvalidRequest),
        (b'"a string"\n', "rows.jsonl", {}, InvalidRequest),
        (ROWS, "x" * 300, {}, InvalidRequest),
        (ROWS * 100, "rows.jsonl", {}, TooLarge),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(
    files: Files, content: bytes, filename: str, given: dict[str, Any], problem: type[GraftworkError]
) -> None:
    with pytest.raises(problem):
        keep(files, content, filename, **given)
    assert names_on_disk(files) == []
    assert list(files.find()) == []


def test_stored_again_under_its_id_it_is_the_same(files: Files) -> None:
    first = keep(files, id="file-results", purpose="fine-tune-results")
    assert keep(files, b"[1]\n", id="file-results", purpose="fine-tune-results") == first
    assert names_on_disk(files) == ["file-results.jsonl"]
    assert files.path(first).read_bytes() == ROWS, "its digest is of these bytes"
    files.delete(first.id)
    assert keep(files, id="file-results", purpose="fine-tune-results").deleted_at is not None
    assert names_on_disk(files) == []


def test_of_many_that_store_it_at_once_one_does(files: Files) -> None:
    contents = [f'{{"row": {number}}}\n'.encode() for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        kept = list(pool.map(lambda content: keep(files, content, id="file-results"), contents))
    assert len(set(kept)) == 1
    assert kept[0].digest == f"sha256:{hashlib.sha256(files.path(kept[0]).read_bytes()).hexdigest()}"
    assert names_on_disk(files) == ["file-results.jsonl"]


def test_a_full_disk_is_reported_and_leaves_nothing(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(Unavailable, match="disk is full"):
            keep(files)
    assert names_on_disk(files) == []
    assert list(files.find()) == []


def test_what_a_kill_left_behind_is_cleaned_and_nothing_else(files: Files) -> None:
    kept = keep(files)
    (files.root / "staging" / "half").write_bytes(b"x")
    (files.root / "file-without-a-row.jsonl").write_bytes(b"x")
    files.clean()
    assert names_on_disk(files) == [files.path(kept).name]
