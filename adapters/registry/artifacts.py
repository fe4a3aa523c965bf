"""The artifact store: adapters' files, from upload to publication.

::

    root/
      staging/<random>/    being written: an upload, or a copy of a folder the server may read
      <sha256 hex>/        published: adapter_config.json and adapter_model.safetensors, read-only

A folder is published by one rename after its bytes are on disk: readers see all of it or nothing, and a kill at any
time leaves only staging, which :meth:`ArtifactStore.clean` empties when the server starts. The same digest published
twice is the same folder.

Only the two files of a PEFT folder are accepted. Nothing else is opened, links are resolved once and then never
followed, and what is not a regular file is refused before it is opened (a FIFO would block for ever). A hard link is
fine: the bytes are copied, so that changes under the other name do not reach the artifact.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import shutil
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from graftwork.adapters.errors import GraftworkError, InvalidAdapter, NotFound, TooLarge
from graftwork.adapters.names import escaped
from graftwork.adapters.peft_format.files import (
    CONFIG_FILE,
    MODEL_CARD_FILE,
    TOKENIZER_FILES,
    WEIGHTS_FILE,
    check_filename,
    check_listing,
    open_regular,
    os_error_reason,
)
from graftwork.adapters.peft_format.folder import digest_of
from graftwork.adapters.peft_format.limits import AdapterLimits
from graftwork.adapters.storage.durable import sync_folder

log = logging.getLogger(__name__)

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})\Z")

_CHUNK_BYTES = 1 << 20
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class StagedFile:
    """One file of an upload, written as it arrives. A context manager."""

    def __init__(self, filename: str, file: BinaryIO, limit: int) -> None:
        self._filename = filename
        self._file = file
        self._limit = limit
        self._num_bytes = 0

    def write(self, chunk: bytes) -> None:
        """Append bytes.

        Raises:
            TooLarge: The file is beyond its limit.
        """
        self._num_bytes += len(chunk)
        if self._num_bytes > self._limit:
            raise TooLarge(
                f"{self._filename} is larger than the {self._limit} bytes this server takes: push a smaller one, "
                "or raise the server's limit.",
                param=self._filename,
            )
        self._file.write(chunk)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> StagedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ArtifactStore:
    """Published adapters under ``root``, and the staging folder. Thread-safe."""

    def __init__(self, root: Path, *, limits: AdapterLimits) -> None:
        self.root = root
        self.limits = limits
        self._staging = root / "staging"
        self._staging.mkdir(parents=True, exist_ok=True, mode=0o700)
        sync_folder(root.parent)

    def stage(self) -> Path:
        """A new, empty folder to write an adapter into, for ``publish`` or ``discard``."""
        staged = self._new_staged()
        staged.mkdir(mode=0o700)
        return staged

    def open_staged(self, staged: Path, filename: str) -> StagedFile:
        """A writer for one file of an upload.

        Raises:
            InvalidAdapter: No adapter has a file of that name, or it came before.
        """
        self._check_staged(staged)
        check_filename(filename)
        if filename == MODEL_CARD_FILE:
            return StagedFile(filename, io.BytesIO(), self.limits.max_bytes(filename))
        try:
            file = open(staged / filename, "xb")  # noqa: SIM115 - the StagedFile closes it
        except FileExistsError:
            raise InvalidAdapter(f"{filename} came twice: push each file once.", param=filename) from None
        return StagedFile(filename, file, self.limits.max_bytes(filename))

    def stage_folder(self, source: Path, allowed_roots: Sequence[Path]) -> Path:
        """Copy an adapter from a folder that the server may read into staging.

        Args:
            source: A PEFT folder: an absolute path that is, links resolved, below one of ``allowed_roots``; so are its
                files.
            allowed_roots: Folders that the server may read.

        Returns:
            The staged folder.

        Raises:
            InvalidAdapter: The path or a file is refused; the message names it. Nothing stays staged.
            TooLarge: A file is beyond its limit. Nothing stays staged.
        """
        roots = [os.path.realpath(root) for root in allowed_roots]
        staged = self.stage()
        try:
            listed = _list_beneath(source, roots)
            check_listing(listed, source)
            for filename in (CONFIG_FILE, WEIGHTS_FILE, *listed.intersection(TOKENIZER_FILES)):
                with (
                    _open_file_beneath(source / filename, roots) as reader,
                    self.open_staged(staged, filename) as writer,
                ):
                    while chunk := reader.read(_CHUNK_BYTES):
                        writer.write(chunk)
        except BaseException:
            self.discard(staged)
            raise
        return staged

    def publish(self, staged: Path, digest: str) -> Path:
        """Publish a staged adapter; it is durable when this returns.

        Args:
            staged: Is moved, or dropped if the artifact is there already. A tokenizer's files in it are dropped.
            digest: That of this folder.

        Returns:
            The artifact's folder.

        Raises:
            InvalidAdapter: The folder has other files than the two.
        """
        self._check_staged(staged)
        target = self._folder(digest)
        for name in TOKENIZER_FILES:
            (staged / name).unlink(missing_ok=True)
        names = sorted(entry.name for entry in os.scandir(staged))
        if names != [CONFIG_FILE, WEIGHTS_FILE]:
            raise InvalidAdapter(f"an adapter is {CONFIG_FILE} and {WEIGHTS_FILE}: staged were {escaped(names)}.")
        for name in names:
            with open_regular(staged / name) as file:
                os.fchmod(file.fileno(), 0o400)
                os.fsync(file.fileno())
        sync_folder(staged)
        try:
            os.rename(staged, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            # A folder is not renamed over one with files in it: the same bytes were published before.
            if self.is_intact(digest):
                self.discard(staged)
            else:
                log.warning("the files of %s changed on the disk: those pushed now take their place", target)
                self.withdraw(digest)
                os.rename(staged, target)
        sync_folder(self.root)
        return target

    def is_intact(self, digest: str) -> bool:
        """Whether the files of a published artifact are those that were pushed. Reads all of them."""
        try:
            return digest_of(self.path(digest), self.limits) == digest
        except GraftworkError:
            return False

    def path(self, digest: str) -> Path:
        """The folder of a published artifact.

        Raises:
            NotFound: The store does not have it.
        """
        folder = self._folder(digest)
        if not folder.is_dir():
            raise NotFound(f"no artifact {digest} in the store: push the adapter again.")
        return folder

    def holds(self, digest: str) -> bool:
        """Whether the store has an artifact."""
        return self._folder(digest).is_dir()

    def withdraw(self, digest: str) -> None:
        """Delete a published artifact, at once for all who look for it.

        Raises:
            NotFound: The store does not have it.
        """
        self.discard(self.unpublish(digest))

    def unpublish(self, digest: str) -> Path:
        """Take a published artifact away, by one rename, and return the staged folder that it is now, for ``discard``.

        It needs no room: a full disk becomes emptier by it.

        Raises:
            NotFound: The store does not have it.
        """
        folder, staged = self.path(digest), self._new_staged()
        os.rename(folder, staged)
        return staged

    def sizes(self) -> dict[str, int]:
        """The size in bytes of each published artifact, by digest; those published longest ago first.

        What else is in the folder, as a file system's ``lost+found``, is left out.
        """
        found: list[tuple[float, str, int]] = []
        for folder in self.root.iterdir():
            if _DIGEST.match(f"sha256:{folder.name}"):
                with suppress(FileNotFoundError):  # it is withdrawn at this moment
                    size = sum(file.stat().st_size for file in folder.iterdir())
                    found.append((folder.stat().st_mtime, f"sha256:{folder.name}", size))
        return {digest: size for _, digest, size in sorted(found)}

    def discard(self, staged: Path) -> None:
        """Delete a staged folder, if it is still there."""
        self._check_staged(staged)
        shutil.rmtree(staged, ignore_errors=True)

    def clean(self) -> None:
        """Delete everything staged. Call it when the server starts, before anything is staged."""
        for entry in self._staging.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def _new_staged(self) -> Path:
        return self._staging / uuid.uuid4().hex

    def _folder(self, digest: str) -> Path:
        match = _DIGEST.match(digest)
        if match is None:
            raise NotFound(f"{escaped(digest)} is no artifact's digest: it reads sha256: and 64 hexadecimal digits.")
        return self.root / match[1]

    def _check_staged(self, staged: Path) -> None:
        if staged.parent != self._staging or staged.name in ("", ".", ".."):
            raise GraftworkError(f"{staged} was not staged by this store.")


def _open_beneath(path: Path, roots: Sequence[str], *, what: str) -> tuple[int, str]:
    """Open the folder that contains ``path``, which must be, links resolved, below one of ``roots`` (real paths).

    Returns the folder's descriptor and the name to open in it ("." for a root itself). No link is followed on the way
    down from the root: one that was created after ``path`` was resolved is refused.
    """
    if not path.is_absolute():
        raise InvalidAdapter(f"{escaped(str(path))} is relative: give the adapter's absolute path.", param="path")
    try:
        real = os.path.realpath(path)
    except (OSError, ValueError) as error:
        raise InvalidAdapter(f"{escaped(str(path))} is no path: {os_error_reason(error)}.", param="path") from None
    root = next((root for root in roots if os.path.commonpath([root, real]) == root), None)
    if root is None:
        raise InvalidAdapter(
            f"{what} {escaped(str(path))} leads out of the folders that this server may read adapters from: "
            "move the adapter below one of them, or upload its files.",
            param=what,
        )
    *steps, name = os.path.relpath(real, root).split(os.sep)
    fd = -1
    try:
        fd = os.open(root, _FOLDER_FLAGS)
        for step in steps:
            above, fd = fd, os.open(step, _FOLDER_FLAGS, dir_fd=fd)
            os.close(above)
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        raise InvalidAdapter(
            f"{what} {escaped(str(path))} cannot be read: {os_error_reason(error)}.", param=what
        ) from None
    return fd, name


def _list_beneath(path: Path, roots: Sequence[str]) -> set[str]:
    above, name = _open_beneath(path, roots, what="path")
    try:
        fd = os.open(name, _FOLDER_FLAGS, dir_fd=above)
    except OSError as error:
        raise InvalidAdapter(
            f"path {escaped(str(path))} cannot be read: {os_error_reason(error)}.", param="path"
        ) from None
    finally:
        os.close(above)
    try:
        return set(os.listdir(fd))
    finally:
        os.close(fd)


def _open_file_beneath(path: Path, roots: Sequence[str]) -> BinaryIO:
    above, name = _open_beneath(path, roots, what=path.name)
    try:
        return open_regular(name, dir_fd=above, what=path.name)
    finally:
        os.close(above)
