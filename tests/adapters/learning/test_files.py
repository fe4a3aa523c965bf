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
from graftwork.adapters.storage.objects import ObjectStore

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


# --- in a bucket ------------------------------------------------------------------------------------------------------


@pytest.fixture
def objects(tmp_path: Path) -> ObjectStore:
    return ObjectStore(f"file://{tmp_path}/bucket")


@pytest.fixture
def here(database: Database, tmp_path: Path, objects: ObjectStore) -> Files:
    return Files(database, tmp_path / "files", max_bytes=1000, objects=objects)


@pytest.fixture
def there(database: Database, tmp_path: Path, objects: ObjectStore) -> Files:
    """Another server's."""
    return Files(database, tmp_path / "home" / "files", max_bytes=1000, objects=objects)


def test_another_server_reads_and_deletes_it(here: Files, there: Files, objects: ObjectStore) -> None:
    file = keep(here)
    assert here.fetch(file) == here.path(file)
    assert not there.path(file).exists()
    assert there.fetch(there.get(file.id)).read_bytes() == ROWS
    there.delete(file.id)
    assert not list(objects.list("files"))
    assert names_on_disk(there) == []
    here.remove_strays()
    assert names_on_disk(here) == []


@pytest.mark.parametrize("content", [None, ROWS[:-1], ROWS.replace(b"a", b"c"), ROWS + b" " * 5000])
def test_bytes_that_changed_in_the_bucket_are_not_read(
    here: Files, there: Files, objects: ObjectStore, tmp_path: Path, content: bytes | None
) -> None:
    file = keep(here)
    (key,) = objects.list("files")
    if content is None:
        objects.delete(key)
    else:
        (tmp_path / "bucket" / key).write_bytes(content)
    with pytest.raises(NotFound, match="upload the file again"):
        there.fetch(file)
    assert names_on_disk(there) == []
    assert here.fetch(file).read_bytes() == ROWS


def test_of_two_servers_that_store_it_one_does(here: Files, there: Files, objects: ObjectStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        kept = list(
            pool.map(lambda n: keep((here, there)[n % 2], f'{{"row": {n}}}\n'.encode(), id="file-results"), range(8))
        )
    assert len(set(kept)) == 1
    assert [key.split("/")[1:] for key in objects.list("files")] == [
        ["file-results", kept[0].digest.removeprefix("sha256:")]
    ]
    assert here.fetch(kept[0]).read_bytes() == there.fetch(kept[0]).read_bytes()


def test_a_bucket_that_is_away(
    database: Database, dead_bucket: str, tmp_path: Path, here: Files, objects: ObjectStore
) -> None:
    cut_off = Files(database, tmp_path / "files", max_bytes=1000, objects=ObjectStore(dead_bucket))
    with pytest.raises(Unavailable, match="try again"):
        keep(cut_off)
    assert list(cut_off.find()) == []
    assert names_on_disk(cut_off) == []
    file = keep(here)
    assert cut_off.fetch(file).read_bytes() == ROWS
    here.path(file).unlink()
    with pytest.raises(Unavailable):
        cut_off.fetch(file)
    cut_off.delete(file.id)
    assert len(list(objects.list("files"))) == 1, "it goes later"


def test_objects_without_a_file_go_when_they_are_old(
    database: Database, dead_bucket: str, tmp_path: Path, here: Files, objects: ObjectStore
) -> None:
    kept, deleted = keep(here), keep(here)
    Files(database, tmp_path / "files", objects=ObjectStore(dead_bucket)).delete(deleted.id)
    here.clean_bucket()
    assert len(list(objects.list("files"))) == 2
    for key in objects.list("files"):
        os.utime(tmp_path / "bucket" / key, (0, 0))
    here.clean_bucket()
    assert [key.split("/")[1] for key in objects.list("files")] == [kept.id]
