"""Uploaded files, and the results of jobs and batches: bytes in a folder, rows in the database.

::

    root/
      staging/<random>     being written
      <id>.jsonl           complete; the suffix is the uploaded file's

A file is acknowledged when its bytes and its name are on disk and its row is committed. A kill at any time leaves at
worst bytes without a row, which ``Files.clean`` removes. Uploaded names are labels, never paths. A file belongs to the
key that made it: methods that take an ``owner`` find the files of that key alone, or everybody's for ``None``.

With a bucket the bytes are also there, as ``files/<id>/<sha256 hex>``, before the row is committed, so that every
server of the database can read them; the folder then has copies of those that were written or read here.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Literal, get_args

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Integer,
    Named,
    Row,
    Table,
    Text,
    TypedColumns,
    insert,
    select,
    update,
)

from graftwork.adapters import names
from graftwork.adapters.access import audit
from graftwork.adapters.errors import Conflict, InvalidRequest, NotFound, TooLarge, Unavailable
from graftwork.adapters.storage.database import Database, Page, UtcDateTime, schema
from graftwork.adapters.storage.durable import disk_full_as_unavailable, sync_folder
from graftwork.adapters.storage.objects import ObjectStore

log = logging.getLogger(__name__)

UploadPurpose = Literal["fine-tune", "batch"]
UPLOAD_PURPOSES: Final[tuple[UploadPurpose, ...]] = get_args(UploadPurpose)

Purpose = Literal[UploadPurpose, "fine-tune-results", "batch_output"]
"""The last two are results, which the server writes."""

FindUser = Callable[[Connection, str], str | None]
"""Finds an unfinished job or batch that needs a file, in a transaction: from the file's id to its id."""

MAX_BATCH_BYTES: Final = 200_000_000
"""The largest file of the purpose ``batch``, as OpenAI has it."""

STRAY_AGE: Final = timedelta(days=1)
"""Objects without a file are removed when they are so old."""

MAX_FILENAME_CHARS: Final = 256
MAX_PAGE: Final = 10_000
"""The limit of OpenAI's list of files."""

_SUFFIX = re.compile(r"\.[a-z0-9]{1,8}")
_JSON_LINES = frozenset({".jsonl", ".ndjson"})
_HEAD_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class File:
    """One file. ``digest`` is ``sha256:…`` of its bytes."""

    number: int
    id: str
    created_at: datetime
    filename: str
    purpose: Purpose
    num_bytes: int
    digest: str
    key_id: str
    deleted_at: datetime | None = None


class _FileColumns(TypedColumns):
    number: Named[int] = Column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    id: Named[str] = Column(Text)
    created_at = Column(UtcDateTime, nullable=False)
    filename: Named[str] = Column(Text)
    purpose: Named[str] = Column(Text)
    num_bytes: Named[int] = Column(BigInteger)
    digest: Named[str] = Column(Text)
    key_id: Named[str] = Column(Text)
    deleted_at = Column(UtcDateTime, nullable=True)


files_table = Table("files", schema, _FileColumns)


class FileUpload:
    """A file that is being uploaded. A context manager: a file that was not finished is deleted at the end.

    Attributes:
        path: Where it is until it has its name.
        num_bytes: Written so far.
        head: The first megabyte.
    """

    def __init__(self, path: Path, max_bytes: int | None) -> None:
        self.num_bytes = 0
        self.head = b""
        self.path = path
        self._max_bytes = max_bytes
        self._digest = hashlib.sha256()
        self._file: BinaryIO = path.open("xb")

    def write(self, chunk: bytes) -> None:
        """Append bytes.

        Raises:
            TooLarge: The file is beyond the limit.
            Unavailable: The disk is full.
        """
        self.num_bytes += len(chunk)
        if self._max_bytes is not None and self.num_bytes > self._max_bytes:
            raise TooLarge(
                f"the file is larger than the {self._max_bytes} bytes that this server takes: split it, or raise "
                "--max-file-gb",
                param="file",
            )
        with disk_full_as_unavailable("file"):
            self._file.write(chunk)
        self._digest.update(chunk)
        if len(self.head) < _HEAD_BYTES:
            self.head += chunk[: _HEAD_BYTES - len(self.head)]

    def finish(self) -> str:
        """Make the bytes durable, and return their digest.

        Raises:
            Unavailable: The disk is full.
        """
        with disk_full_as_unavailable("file"):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        return f"sha256:{self._digest.hexdigest()}"

    def move(self, target: Path) -> None:
        """Give the finished file its final name, durably.

        Raises:
            Unavailable: The disk is full.
        """
        with disk_full_as_unavailable("file"):
            os.rename(self.path, target)
            sync_folder(target.parent)

    def __enter__(self) -> FileUpload:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # what is buffered does not fit on a full disk: that was reported, and it goes anyway
            self._file.close()
        self.path.unlink(missing_ok=True)


class Files:
    """The files of one home, for any number of threads and processes.

    Args:
        database: Has their rows.
        root: Has their bytes.
        max_bytes: The largest uploaded file.
        objects: The bucket that has their bytes, too; ``None``: no other server reads them.
    """

    def __init__(
        self, database: Database, root: Path, *, max_bytes: int = 1 << 29, objects: ObjectStore | None = None
    ) -> None:
        self.root = root
        self.max_bytes = max_bytes
        self._database = database
        self._objects = objects
        self._staging = root / "staging"
        self._staging.mkdir(parents=True, exist_ok=True, mode=0o700)
        sync_folder(root.parent)

    def upload(self, *, bounded: bool = True) -> FileUpload:
        """A new file to write into, for ``keep``; ``bounded``: of at most ``max_bytes``."""
        with disk_full_as_unavailable("file"):
            return FileUpload(self._staging / uuid.uuid4().hex, self.max_bytes if bounded else None)

    def keep(self, upload: FileUpload, *, filename: str, purpose: Purpose, key_id: str, id: str | None = None) -> File:
        """Store an uploaded file; it is durable when this returns.

        Args:
            upload: Written completely.
            filename: A label, without meaning as a path.
            purpose: What it is for.
            key_id: The key that owns it.
            id: Of the new file; if a file has it already, that one is returned as it is, even if it was deleted.

        Raises:
            InvalidRequest: The name is invalid, the file is empty, or the first of its JSON lines is none.
            TooLarge: It is larger than a file of this purpose may be.
            Unavailable: The disk is full, or the bucket does not answer.
        """
        if purpose == "batch" and upload.num_bytes > MAX_BATCH_BYTES:
            raise TooLarge(
                f"the file has {upload.num_bytes} bytes, and a batch's takes {MAX_BATCH_BYTES}: make several batches",
                param="file",
            )
        filename = filename.replace("\\", "/").rpartition("/")[2] or "file.jsonl"
        names.check_text(filename, param="file", max_chars=MAX_FILENAME_CHARS)
        _check_content(upload, filename)
        id = id or f"file-{secrets.token_hex(12)}"
        digest = upload.finish()
        key = _key(id, digest)
        if self._objects is not None:
            self._objects.put_new(key, upload.path)
        row = {
            "id": id,
            "created_at": datetime.now(UTC),
            "filename": filename,
            "purpose": purpose,
            "num_bytes": upload.num_bytes,
            "digest": digest,
            "key_id": key_id,
        }
        with self._database.write() as connection:
            # Of two that keep a file under one id, the later one must not touch the bytes of the first.
            known = _find(connection, id, deleted=True)
            if known is None:
                connection.execute(insert(files_table).values(row))
                audit.made(id)
                file = get_file(connection, id)
                upload.move(self.path(file))
                return file
        if self._objects is not None and (known.digest != digest or known.deleted_at is not None):
            with suppress(Unavailable):  # no row names it: `clean_bucket` deletes it later
                self._objects.delete(key)
        return known

    def get(self, id: str, *, owner: str | None = None) -> File:
        """A file by its id.

        Raises:
            NotFound: It does not exist, was deleted, or is another key's.
        """
        with self._database.read() as connection:
            return get_file(connection, id, owner=owner)

    def path(self, file: File) -> Path:
        """Where a file's bytes are, once they are here: see ``fetch``."""
        return self.root / f"{file.id}{_suffix(file.filename)}"

    def fetch(self, file: File) -> Path:
        """Where a file's bytes are, got from the bucket if another server wrote them.

        Raises:
            NotFound: They are in no place, or were changed: the file must be uploaded again.
            Unavailable: The bucket does not answer, or the disk is full.
        """
        path = self.path(file)
        if self._objects is None or path.exists():
            return path
        try:
            with self.upload(bounded=False) as copy:
                for chunk in self._objects.chunks(_key(file.id, file.digest), max_bytes=file.num_bytes):
                    copy.write(chunk)
                if copy.finish() == file.digest:
                    copy.move(path)
                    return path
        except (NotFound, TooLarge):
            pass
        log.error("the bytes of %s are not in %s, or were changed there", file.id, self._objects.url)
        raise NotFound(
            f"the bytes of {file.id} are not in the bucket, or were changed there: upload the file again",
            code="file_not_found",
        )

    def share(self, file: File) -> bool:
        """Put the bytes of a file that was written without a bucket into it, unless they are there.

        Returns:
            Whether it has them now: not if they are not here as they were written.

        Raises:
            Unavailable: The bucket does not answer.
        """
        assert self._objects is not None
        path, key = self.path(file), _key(file.id, file.digest)
        if self._objects.size(key) == file.num_bytes:
            return True
        try:
            with path.open("rb") as content:
                intact = f"sha256:{hashlib.file_digest(content, 'sha256').hexdigest()}" == file.digest
        except FileNotFoundError:
            return False
        if intact:
            self._objects.put(key, path)
        return intact

    def find(
        self,
        *,
        purpose: str | None = None,
        after: str | None = None,
        limit: int = MAX_PAGE,
        ascending: bool = False,
        owner: str | None = None,
    ) -> Page[File]:
        """A page of files, newest first unless ``ascending``.

        Raises:
            InvalidRequest: ``limit`` is not from 1 to ``MAX_PAGE``, or ``after`` names no file.
        """
        if not 1 <= limit <= MAX_PAGE:
            raise InvalidRequest(f"limit is {limit}: use a number from 1 to {MAX_PAGE}", param="limit")
        query = select(files_table).where(files_table.c.deleted_at.is_(None)).limit(limit + 1)
        query = query.order_by(files_table.c.number if ascending else files_table.c.number.desc())
        if purpose is not None:
            query = query.where(files_table.c.purpose == purpose)
        if owner is not None:
            query = query.where(files_table.c.key_id == owner)
        with self._database.read() as connection:
            if after is not None:
                if (last := _find(connection, after, owner=owner, deleted=True)) is None:
                    raise InvalidRequest(
                        "after names no file: give the id of the last one of the page before", param="after"
                    )
                query = query.where(
                    files_table.c.number > last.number if ascending else files_table.c.number < last.number
                )
            return Page.of([_file(row) for row in connection.execute(query)], limit)

    def delete(self, id: str, *, users: Sequence[FindUser] = (), owner: str | None = None) -> File:
        """Delete the bytes, for good; the row stays as a record.

        Args:
            id: The file.
            users: Find jobs and batches that need it. Called in the transaction, so that none can begin meanwhile.
            owner: The key that alone may own it.

        Raises:
            NotFound: It does not exist, or is another key's.
            Conflict: A job or batch needs it.
        """
        with self._database.write() as connection:
            file = get_file(connection, id, owner=owner)
            for find_user in users:
                if (user := find_user(connection, id)) is not None:
                    raise Conflict(f"{id} is needed by {user}: cancel that first, or wait for its end")
            connection.execute(update(files_table).where(files_table.c.id == id).values(deleted_at=datetime.now(UTC)))
        self.path(file).unlink(missing_ok=True)
        if self._objects is not None:
            with suppress(Unavailable):  # its row is gone: `clean_bucket` deletes it later
                self._objects.delete(_key(file.id, file.digest))
        return file

    def clean(self) -> None:
        """Remove what a kill left behind: unfinished uploads, bytes without a row.

        Call it while nothing is uploaded.
        """
        for staged in self._staging.iterdir():
            staged.unlink()
        self.remove_strays()

    def remove_strays(self) -> None:
        """Remove bytes without a row: those that a kill left behind, and copies of files that others have deleted."""
        # By the only writer: a file that is kept meanwhile has its row when its bytes are seen here.
        with self._database.write() as connection:
            known = set(connection.scalars(select(files_table.c.id).where(files_table.c.deleted_at.is_(None))))
            for path in self.root.iterdir():
                if path.is_file() and path.name.partition(".")[0] not in known:
                    path.unlink()

    def clean_bucket(self) -> None:
        """Remove bytes without a row from the bucket, once they are a day old: no upload takes so long.

        Raises:
            Unavailable: The bucket does not answer or refuses.
        """
        if self._objects is None:
            return
        strays = list(self._objects.list("files", older_than=STRAY_AGE))
        with self._database.read() as connection:
            rows = connection.execute(
                select(files_table.c.id, files_table.c.digest).where(files_table.c.deleted_at.is_(None))
            )
            known = {_key(row.id, row.digest) for row in rows}
        for key in strays:
            if key not in known:
                log.info("removed %s from %s: no file has these bytes", key, self._objects.url)
                self._objects.delete(key)


def _key(id: str, digest: str) -> str:
    """A file's object: whatever is kept under an id, these are its bytes."""
    return f"files/{id}/{digest.removeprefix('sha256:')}"


def _check_content(upload: FileUpload, filename: str) -> None:
    if not upload.num_bytes or not upload.head.strip():
        raise InvalidRequest("the file is empty: upload some lines", param="file", code="empty_file")
    if _suffix(filename) not in _JSON_LINES:
        return
    first, newline, _ = upload.head.lstrip(b"\xef\xbb\xbf\r\n\t ").partition(b"\n")
    if not newline and len(upload.head) < upload.num_bytes:
        return  # a line longer than what is looked at here
    try:
        row = json.loads(first)
    except ValueError as error:
        raise InvalidRequest(
            f"line 1 of {names.quoted(filename)} is not JSON ({error}): a file of JSON lines has one object a line",
            param="file",
            code="invalid_file",
        ) from None
    if not isinstance(row, dict | list):
        raise InvalidRequest(
            f"line 1 of {names.quoted(filename)} is no JSON object: a file of JSON lines has one object a line",
            param="file",
            code="invalid_file",
        )


def _suffix(filename: str) -> str:
    """The suffix that tells the format; ``.jsonl`` for a name without a usable one."""
    suffix = Path(filename).suffix.lower()
    return suffix if _SUFFIX.fullmatch(suffix) else ".jsonl"


def get_file(connection: Connection, id: str, *, owner: str | None = None) -> File:
    """A file, in a transaction of the caller's. See ``Files.get``."""
    if (file := _find(connection, id, owner=owner)) is None:
        raise NotFound(
            f"there is no file {names.quoted(id)}: it was never uploaded here, or deleted", code="file_not_found"
        )
    return file


def _find(connection: Connection, id: str, *, owner: str | None = None, deleted: bool = False) -> File | None:
    row = connection.execute(select(files_table).where(files_table.c.id == id)).one_or_none()
    if row is None or (row.deleted_at is not None and not deleted) or owner not in (None, row.key_id):
        return None
    return _file(row)


def _file(row: Row[*tuple[Any, ...]]) -> File:
    return File(**row._mapping)
