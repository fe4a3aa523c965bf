"""A home that was filled without a bucket: its adapters and files, put into one. The home keeps what it has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from graftwork.adapters.base.progress import Progress
from graftwork.adapters.learning.files import Files
from graftwork.adapters.peft_format.limits import AdapterLimits
from graftwork.adapters.registry.artifacts import ArtifactStore
from graftwork.adapters.registry.bucket import ArtifactBucket
from graftwork.adapters.storage.database import Database
from graftwork.adapters.storage.objects import ObjectStore

#: What was pushed once is taken, whatever the server's limit is now.
_ANY_SIZE: Final = 1 << 50


@dataclass(frozen=True, kw_only=True)
class UploadedHome:
    """What the bucket has now.

    Attributes:
        num_adapters: Adapters, counted by their bytes.
        num_files: Files.
        damaged: What was left out, because it is not as it was written: digests of adapters, ids of files.
    """

    num_adapters: int
    num_files: int
    damaged: tuple[str, ...]


def upload_home(home: Path, database: Database, objects: ObjectStore, progress: Progress) -> UploadedHome:
    """Put all adapters and files of a home into a bucket. Repeated, it sends what is missing there.

    Args:
        home: The folder of a server that is stopped.
        database: Has the rows of its files.
        objects: The bucket.
        progress: Told how far it is.

    Raises:
        Unavailable: The bucket does not answer or refuses.
    """
    adapters, broken_adapters = _upload_adapters(home, ArtifactBucket(objects), progress)
    files, broken_files = _upload_files(Files(database, home / "files", objects=objects), progress)
    return UploadedHome(num_adapters=adapters, num_files=files, damaged=(*broken_adapters, *broken_files))


def _upload_adapters(home: Path, bucket: ArtifactBucket, progress: Progress) -> tuple[int, list[str]]:
    """Upload all adapters; how many there are, and the digests of those that are broken."""
    store = ArtifactStore(home / "artifacts", limits=AdapterLimits(max_adapter_bytes=_ANY_SIZE))
    digests, broken = list(store.sizes()), []
    for number, digest in enumerate(digests):
        progress("Uploading adapters", number / len(digests))
        if not store.is_intact(digest):
            broken.append(digest)
        elif not bucket.holds(store.path(digest)):
            bucket.upload(store.path(digest))
    return len(digests) - len(broken), broken


def _upload_files(files: Files, progress: Progress) -> tuple[int, list[str]]:
    """Upload all files; how many there are, and the ids of those that are broken."""
    number, broken, page = 0, [], files.find(ascending=True)
    while page:
        for file in page:
            progress("Uploading files", None)
            number += 1
            if not files.share(file):
                broken.append(file.id)
        page = files.find(ascending=True, after=page[-1].id)
    return number - len(broken), broken
