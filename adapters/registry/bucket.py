"""Adapters in a bucket, which several servers share.

::

    <url>/artifacts/<sha256 hex>/adapter_model.safetensors
    <url>/artifacts/<sha256 hex>/adapter_config.json

A version is visible by its row in the registry, which is written last: first the weights, then the config. So a kill at
any time leaves at most objects that nobody looks for, and which the next push of the same bytes completes. They are
never deleted: a push that failed cannot know whether another server is just registering the same bytes. Nothing that is
read is trusted before its digest was computed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Final

from graftwork.adapters.errors import GraftworkError, InvalidAdapter, NotFound, TooLarge
from graftwork.adapters.peft_format.files import CONFIG_FILE, WEIGHTS_FILE
from graftwork.adapters.peft_format.folder import digest_of
from graftwork.adapters.registry.artifacts import ArtifactStore
from graftwork.adapters.storage.objects import ObjectStore

log = logging.getLogger(__name__)

#: In the order in which they are published.
_FILES: Final = (WEIGHTS_FILE, CONFIG_FILE)
_CHUNK_BYTES = 1 << 20


class ArtifactBucket:
    """The artifacts in a bucket. Thread-safe.

    Args:
        objects: The bucket.
    """

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    def upload(self, folder: Path) -> None:
        """Put a published artifact into the bucket; it is complete when this returns.

        What is there already is compared: the same bytes stay, others, which no push has left there, are replaced.

        Args:
            folder: As ``ArtifactStore.path`` returns it.

        Raises:
            Unavailable: The bucket does not answer or refuses.
        """
        for name in _FILES:
            key = _key(folder.name, name)
            if self._objects.put_new(key, folder / name) or self._has(key, folder / name):
                continue
            log.warning("%s in the bucket is not what was pushed: what is pushed now takes its place", key)
            self._objects.put(key, folder / name)

    def download(self, digest: str, store: ArtifactStore) -> Path:
        """Get an artifact from the bucket into a store, unless it is there.

        Args:
            digest: Of the artifact.
            store: Publishes it, once the digest was found to be right.

        Returns:
            Its folder.

        Raises:
            GraftworkError: The bucket does not have it, or has something else under its name; the store is unchanged.
            Unavailable: The bucket does not answer, or the disk is full.
        """
        try:
            return store.path(digest)
        except NotFound:
            pass
        began = time.monotonic()
        log.info("fetching %s from %s", digest, self._objects.url)
        staged = store.stage()
        try:
            for name in reversed(_FILES):
                key = _key(digest.removeprefix("sha256:"), name)
                self._objects.get_to(key, staged / name, max_bytes=store.limits.max_bytes(name))
            if digest_of(staged, store.limits) != digest:
                raise InvalidAdapter("its digest is another one")
            folder = store.publish(staged, digest)
        except (NotFound, InvalidAdapter, TooLarge) as error:
            log.error("%s in %s is not used: %s", digest, self._objects.url, error.message)
            what = "are not in the bucket" if isinstance(error, NotFound) else "changed in the bucket"
            raise GraftworkError(
                f"The adapter could not be loaded: its files {what}. Push the same adapter again: that puts them right"
            ) from None
        finally:
            store.discard(staged)
        size = sum(file.stat().st_size for file in folder.iterdir())
        log.info("fetched %s: %.1f MB in %.1f s", digest, size / 1e6, time.monotonic() - began)
        return folder

    def holds(self, folder: Path) -> bool:
        """Whether the bucket has both files of a published artifact, in their sizes.

        Raises:
            Unavailable: The bucket does not answer or refuses.
        """
        return all(self._objects.size(_key(folder.name, name)) == (folder / name).stat().st_size for name in _FILES)

    def _has(self, key: str, path: Path) -> bool:
        """Whether an object has the bytes of a file."""
        if self._objects.size(key) != path.stat().st_size:
            return False
        with path.open("rb") as file:
            return _digest(self._objects.chunks(key)) == _digest(iter(lambda: file.read(_CHUNK_BYTES), b""))


def _key(folder: str, name: str) -> str:
    return f"artifacts/{folder}/{name}"


def _digest(chunks: Iterable[bytes]) -> bytes:
    digest = sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.digest()
