"""Objects in a bucket: what several servers share, or what must outlive a server's disk.

S3, Google Cloud Storage, Azure or a shared folder, by obstore, which is imported when a bucket is first used. There are
no renames in a bucket, but an object appears complete or not at all. Credentials, region and endpoint come from the
environment, as the providers' own tools have them (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, …).
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from graftwork.adapters.errors import ConfigurationError, NotFound, TooLarge, Unavailable

log = logging.getLogger(__name__)

SCHEMES: Final = ("s3", "gs", "az", "file")
STORE_AWAY: Final = "object_store_unavailable"
"""The error code of a bucket that does not answer."""

_ENDPOINTS: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_PART_BYTES = 8 << 20
_CONCURRENT_PARTS = 4
_PROGRESS_SECONDS = 10.0
#: obstore's own defaults are ten tries in three minutes: a bucket that is away would hold requests for as long.
_RETRIES: Final[dict[str, Any]] = {
    "max_retries": 2,
    "retry_timeout": timedelta(seconds=5),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=1), "base": 2},
}
#: Time-outs are those of one part.
_CLIENT: Final[dict[str, Any]] = {"connect_timeout": timedelta(seconds=2), "read_timeout": timedelta(seconds=10)}


class ObjectStore:
    """The objects below one URL. Thread-safe. It may be made before a fork, and used after it.

    Args:
        url: ``s3://bucket/prefix``, ``gs://…``, ``az://…`` or ``file:///folder``.

    Raises:
        ConfigurationError: The URL names no bucket, has a secret in it, its folder cannot be made, or obstore is not
            installed.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES or not (parts.path if parts.scheme == "file" else parts.netloc):
            raise ConfigurationError(
                "--artifacts takes s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///FOLDER."
            )
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ConfigurationError(
                "--artifacts takes no credentials or settings in its URL: set them in the environment, "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for example."
            )
        if find_spec("obstore") is None:
            raise ConfigurationError("--artifacts with a bucket needs obstore: pip install 'graftwork[s3]'.")
        if parts.scheme == "file":
            try:
                Path(unquote(parts.path)).mkdir(parents=True, exist_ok=True, mode=0o700)
            except OSError as error:
                raise ConfigurationError(f"--artifacts {url}: {error.strerror}.") from None
        self.url = url.rstrip("/")

    @cached_property
    def _store(self) -> Any:
        # Made when it is first used, in the process that uses it: obstore's threads do not survive a fork.
        from obstore.store import from_url

        if urlsplit(self.url).scheme == "file":
            return from_url(self.url)
        endpoints = (os.environ.get(name, "") for name in _ENDPOINTS)
        client = {**_CLIENT, "allow_http": any(endpoint.startswith("http://") for endpoint in endpoints)}
        return from_url(self.url, client_options=client, retry_config=_RETRIES)

    def put_new(self, key: str, path: Path) -> bool:
        """Store a file, unless there is an object of that key.

        Returns:
            Whether it was stored.

        Raises:
            Unavailable: The bucket does not answer or refuses; nothing was stored.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError

        with self._errors(key, "stored"):
            try:
                obstore.put(self._store, key, path, mode="create", **_parts(path))
            except AlreadyExistsError:
                return False
        return True

    def put(self, key: str, path: Path) -> None:
        """Store a file, in place of what has its key.

        Raises:
            Unavailable: The bucket does not answer or refuses; nothing has changed.
        """
        import obstore

        with self._errors(key, "stored"):
            obstore.put(self._store, key, path, **_parts(path))

    def size(self, key: str) -> int | None:
        """The size of an object in bytes; ``None`` if there is none.

        Raises:
            Unavailable: The bucket does not answer or refuses.
        """
        import obstore

        with self._errors(key, "looked for"):
            try:
                return int(obstore.head(self._store, key)["size"])
            except FileNotFoundError:
                return None

    def chunks(self, key: str, *, max_bytes: int | None = None) -> Iterator[bytes]:
        """The bytes of an object, in parts of a few megabytes, each asked for when the one before was taken.

        Args:
            key: Of the object.
            max_bytes: The most that the object may have.

        Raises:
            NotFound: There is no such object.
            TooLarge: It is larger than ``max_bytes``.
            Unavailable: The bucket does not answer or refuses.
        """
        import obstore

        size = self.size(key)
        if size is None:
            raise NotFound(f"there is no {key} in {self.url}")
        if max_bytes is not None and size > max_bytes:
            raise TooLarge(f"{key} in {self.url} has {size} bytes, and at most {max_bytes} are taken")
        said_at = time.monotonic()
        for start in range(0, size, _PART_BYTES):
            with self._errors(key, "read"):
                part = obstore.get_range(self._store, key, start=start, end=min(start + _PART_BYTES, size))
            yield part.to_bytes()
            if time.monotonic() > said_at + _PROGRESS_SECONDS:
                said_at = time.monotonic()
                log.info("%s of %s: %.0f of %.0f MB", key, self.url, (start + len(part)) / 1e6, size / 1e6)

    def get_to(self, key: str, path: Path, *, max_bytes: int | None = None) -> None:
        """Write an object's bytes to a new file. See ``chunks``."""
        with path.open("xb") as file:
            for chunk in self.chunks(key, max_bytes=max_bytes):
                file.write(chunk)

    def delete(self, key: str) -> None:
        """Delete an object, if there is one.

        Raises:
            Unavailable: The bucket does not answer or refuses.
        """
        import obstore

        with self._errors(key, "deleted"):
            try:
                obstore.delete(self._store, key)
            except FileNotFoundError:
                return

    def list(self, prefix: str, *, older_than: timedelta = timedelta(0)) -> Iterator[str]:
        """The keys below a prefix, which is a folder's name without its slash.

        Args:
            prefix: The folder.
            older_than: Younger objects are left out.

        Raises:
            Unavailable: The bucket does not answer or refuses.
        """
        import obstore

        before = datetime.now(UTC) - older_than
        with self._errors(prefix, "listed"):
            for batch in obstore.list(self._store, prefix=prefix):
                yield from (str(found["path"]) for found in batch if found["last_modified"] <= before)

    @contextmanager
    def _errors(self, key: str, what: str) -> Iterator[None]:
        """Whatever the bucket says, as an error of ours."""
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, OSError, ValueError) as error:
            reason = _reason(error)
            log.warning("%s in %s could not be %s: %s", key, self.url, what, reason)
            raise Unavailable(
                f"the object store {self.url} cannot be used at the moment ({reason}): try again when it can",
                code=STORE_AWAY,
            ) from None


def _parts(path: Path) -> dict[str, Any]:
    """How a file is sent. obstore would hold one that must be new in memory as a whole, unless it is told not to."""
    return {
        "use_multipart": path.stat().st_size > _PART_BYTES,
        "chunk_size": _PART_BYTES,
        "max_concurrency": _CONCURRENT_PARTS,
    }


def _reason(error: Exception) -> str:
    """What a provider says, in a few words. Not the address that it repeats, whose query may be signed."""
    text = str(error)
    if (code := re.search(r"<Code>(\w+)</Code>", text)) is not None:
        return code[1]
    return re.sub(r"\?\S*", "", text.partition("\n")[0].rpartition(" - ")[2])[:200]
