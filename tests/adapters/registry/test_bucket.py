"""Adapters in a bucket: the order in which they get there, and that nothing else than what was pushed comes out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.errors import GraftworkError, Unavailable
from graftwork.adapters.peft_format.files import CONFIG_FILE, WEIGHTS_FILE
from graftwork.adapters.peft_format.limits import AdapterLimits
from graftwork.adapters.registry.artifacts import ArtifactStore
from graftwork.adapters.registry.bucket import ArtifactBucket
from graftwork.adapters.storage.objects import ObjectStore
from tests.adapters import adapter_files as files


@pytest.fixture
def objects(tmp_path: Path) -> ObjectStore:
    return ObjectStore(f"file://{tmp_path}/bucket")


@pytest.fixture
def bucket(objects: ObjectStore) -> ArtifactBucket:
    return ArtifactBucket(objects)


@pytest.fixture
def home(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "home" / "artifacts", limits=files.SMALL)


@pytest.fixture
def other_home(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "other" / "artifacts", limits=files.SMALL)


@pytest.fixture
def digest(home: ArtifactStore, tmp_path: Path) -> str:
    """An adapter in the home, and not yet in the bucket."""
    base: BaseInfo = files.tiny_base(tmp_path / "base")
    return files.push(home, files.write(tmp_path / "good", files.config(), files.tensors(base)), base).digest


def contents(store: ArtifactStore, digest: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.path(digest).iterdir()}


def test_there_and_back(bucket: ArtifactBucket, home: ArtifactStore, other_home: ArtifactStore, digest: str) -> None:
    bucket.upload(home.path(digest))
    folder = bucket.download(digest, other_home)
    assert folder == other_home.path(digest)
    assert contents(other_home, digest) == contents(home, digest)
    assert other_home.is_intact(digest)
    assert bucket.holds(folder)
    assert bucket.download(digest, other_home) == folder
    assert files.published(other_home) == [folder.name]


class Killed(BaseException):
    """The process ends here."""


class Mortal(ObjectStore):
    """Lives for so many new objects."""

    lives = 0

    def put_new(self, key: str, path: Path) -> bool:
        if self.lives == 0:
            raise Killed
        self.lives -= 1
        return super().put_new(key, path)


@pytest.mark.parametrize(("lives", "left"), [(0, []), (1, [WEIGHTS_FILE])])
def test_killed_between_two_objects(
    lives: int, left: list[str], objects: ObjectStore, home: ArtifactStore, other_home: ArtifactStore, digest: str
) -> None:
    mortal = Mortal(objects.url)
    mortal.lives = lives
    with pytest.raises(Killed):
        ArtifactBucket(mortal).upload(home.path(digest))
    assert [key.rpartition("/")[2] for key in objects.list("artifacts")] == left
    bucket = ArtifactBucket(objects)
    assert not bucket.holds(home.path(digest))
    with pytest.raises(GraftworkError, match="not in the bucket"):
        bucket.download(digest, other_home)
    assert files.published(other_home) == []
    bucket.upload(home.path(digest))
    bucket.download(digest, other_home)


def test_many_push_and_fetch_the_same_at_once(
    bucket: ArtifactBucket,
    home: ArtifactStore,
    other_home: ArtifactStore,
    digest: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with ThreadPoolExecutor(8) as threads, caplog.at_level(logging.WARNING):
        list(threads.map(bucket.upload, [home.path(digest)] * 8))
        list(threads.map(lambda _: bucket.download(digest, other_home), range(8)))
    assert not caplog.records
    assert contents(other_home, digest) == contents(home, digest)
    assert files.published(other_home) == files.published(home)


def change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


def fill(path: Path) -> None:
    path.write_bytes(bytes(1 << 20))  # more than an adapter may have here


@pytest.mark.parametrize(
    ("change", "name"),
    [
        *(
            (change, name)
            for change in (change_a_byte, truncate, fill, Path.unlink)
            for name in (WEIGHTS_FILE, CONFIG_FILE)
        ),
        (lengthen, WEIGHTS_FILE),  # white space after JSON means nothing, and the digest says so
    ],
)
def test_what_changed_in_the_bucket_is_refused_until_it_is_pushed_again(
    change: Callable[[Path], None],
    name: str,
    bucket: ArtifactBucket,
    home: ArtifactStore,
    tmp_path: Path,
    digest: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    limits = AdapterLimits(max_adapter_bytes=100_000, max_config_bytes=10_000, max_rank=files.SMALL.max_rank)
    other_home = ArtifactStore(tmp_path / "other" / "artifacts", limits=limits)
    bucket.upload(home.path(digest))
    change(tmp_path / "bucket" / "artifacts" / digest.removeprefix("sha256:") / name)
    with pytest.raises(GraftworkError, match="Push the same adapter again") as refused:
        bucket.download(digest, other_home)
    assert refused.value.status == 500
    assert digest in caplog.text
    assert files.published(other_home) == []
    bucket.upload(home.path(digest))
    bucket.download(digest, other_home)
    assert contents(other_home, digest) == contents(home, digest)


def test_a_bucket_that_is_away_changes_nothing(
    dead_bucket: str, home: ArtifactStore, other_home: ArtifactStore, digest: str
) -> None:
    bucket = ArtifactBucket(ObjectStore(dead_bucket))
    with pytest.raises(Unavailable):
        bucket.upload(home.path(digest))
    with pytest.raises(Unavailable):
        bucket.download(digest, other_home)
    assert files.published(other_home) == []
    assert home.is_intact(digest)
    assert bucket.download(digest, home) == home.path(digest)
