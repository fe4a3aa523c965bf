"""Objects in a shared folder: the same code as for a bucket, without a server. tests/e2e has one of S3's kind."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from graftwork.adapters.errors import ConfigurationError, NotFound, TooLarge, Unavailable
from graftwork.adapters.storage import objects as objects_module
from graftwork.adapters.storage.objects import STORE_AWAY, ObjectStore

CONTENT = bytes(range(256)) * 100


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    monkeypatch.setattr(objects_module, "_PART_BYTES", 1000)  # all is sent and read in several parts
    return ObjectStore(f"file://{tmp_path}/bucket/prefix")


def file(folder: Path, content: bytes = CONTENT) -> Path:
    path = folder / f"file-{len(content)}"
    path.write_bytes(content)
    return path


def test_an_object_is_new_once(store: ObjectStore, tmp_path: Path) -> None:
    assert store.put_new("a/b/c", file(tmp_path))
    assert not store.put_new("a/b/c", file(tmp_path, b"others"))
    assert b"".join(store.chunks("a/b/c")) == CONTENT
    store.put("a/b/c", file(tmp_path, b"others"))
    store.get_to("a/b/c", tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == b"others"
    assert store.size("a/b/c") == 6


def test_of_many_at_once_one_is_new(store: ObjectStore, tmp_path: Path) -> None:
    path = file(tmp_path)
    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(lambda _: store.put_new("a/b", path), range(8))) == 1
    assert b"".join(store.chunks("a/b")) == CONTENT


def test_what_is_not_there(store: ObjectStore, tmp_path: Path) -> None:
    assert store.size("nothing") is None
    with pytest.raises(NotFound, match="nothing"):
        store.get_to("nothing", tmp_path / "got")
    store.delete("nothing")


def test_no_more_than_the_limit_is_read(store: ObjectStore, tmp_path: Path) -> None:
    store.put("large", file(tmp_path))
    assert b"".join(store.chunks("large", max_bytes=len(CONTENT))) == CONTENT
    with pytest.raises(TooLarge, match="25600"):
        next(store.chunks("large", max_bytes=len(CONTENT) - 1))


def test_listing_and_deleting(store: ObjectStore, tmp_path: Path) -> None:
    for key in ("a/1", "a/2", "ab/3"):
        store.put(key, file(tmp_path))
    assert sorted(store.list("a")) == ["a/1", "a/2"]
    store.delete("a/1")
    assert list(store.list("a")) == ["a/2"]


def test_others_cannot_read_it(store: ObjectStore, tmp_path: Path) -> None:
    store.put("a", file(tmp_path))
    assert (tmp_path / "bucket/prefix").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("s3://", "BUCKET"),
        ("bucket/prefix", "BUCKET"),
        ("https://example.com/x", "BUCKET"),
        ("memory:///", "BUCKET"),
        ("file://", "BUCKET"),
        ("s3://key:secret@bucket/prefix", "environment"),
        ("az://container/prefix?sig=secret", "environment"),
    ],
)
def test_urls_that_are_refused(url: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as refused:
        ObjectStore(url)
    assert "secret@" not in refused.value.message
    assert "sig=secret" not in refused.value.message


def test_folders_with_odd_names_and_without_permission(tmp_path: Path) -> None:
    store = ObjectStore(f"file://{tmp_path}/a%20b")
    store.put("key", file(tmp_path))
    assert (tmp_path / "a b" / "key").read_bytes() == CONTENT
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="Not a directory"):
        ObjectStore(f"file://{tmp_path}/file/folder")


def test_without_obstore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects_module, "find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r"graftwork\[s3\]"):
        ObjectStore("s3://bucket")


def test_a_dead_bucket_says_so_within_seconds(
    dead_bucket: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = ObjectStore(dead_bucket)
    began = time.monotonic()
    for ask in (
        lambda: store.put_new("a", file(tmp_path)),
        lambda: store.put("a", file(tmp_path)),
        lambda: store.size("a"),
        lambda: store.get_to("a", tmp_path / "got"),
        lambda: store.delete("a"),
        lambda: list(store.list("a")),
    ):
        with pytest.raises(Unavailable, match="try again") as away:
            ask()
        assert away.value.code == STORE_AWAY
        assert "top-secret" not in away.value.message
    assert time.monotonic() - began < 60
    assert "top-secret" not in caplog.text
