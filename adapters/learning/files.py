"""Uploaded training files, and the results of jobs: bytes in a folder, rows in the database.

::

    root/
      staging/<random>     being written
      <id>.jsonl           complete; the suffix is the uploaded file's

A file is acknowledged when its bytes and its name are on disk and its row is committed. A kill at any time leaves at
worst bytes without a row, which ``Files.clean`` removes. Uploaded names are labels, never paths.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import uuid
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
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
from graftwork.adapters.errors import Conflict, InvalidRequest, NotFound, TooLarge
from graftwork.adapters.storage.database import Database, Page, UtcDateTime, schema
from graftwork.adapters.storage.durable import disk_full_as_unavailable, sync_folder

Purpose = Literal["fine-tune", "fine-tune-results"]
PURPOSES: Final[tuple[Purpose, ...]] = get_args(Purpose)

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
        num_bytes: Written so far.
        head: The first megabyte.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.num_bytes = 0
        self.head = b""
        self._path = path
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
        if self.num_bytes > self._max_bytes:
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

    def finish(self, target: Path) -> str:
        """Make the file durable under its final name, and return its digest.

        Raises:
            Unavailable: The disk is full.
        """
        with disk_full_as_unavailable("file"):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.rename(self._path, target)
            sync_folder(target.parent)
        return f"sha256:{self._digest.hexdigest()}"

    def __enter__(self) -> FileUpload:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # what is buffered does not fit on a full disk: that was reported, and it goes anyway
            self._file.close()
        self._path.unlink(missing_ok=True)


class Files:
    """The files of one home, for any number of threads and processes.

    Args:
        database: Has their rows.
        root: Has their bytes.
        max_bytes: The largest file.
    """

    def __init__(self, database: Database, root: Path, *, max_bytes: int = 1 << 29) -> None:
        self.root = root
        self.max_bytes = max_bytes
        self._database = database
        self._staging = root / "staging"
        self._staging.mkdir(parents=True, exist_ok=True, mode=0o700)
        sync_folder(root.parent)

    def upload(self) -> FileUpload:
        """A new file to write into, for ``keep``."""
        with disk_full_as_unavailable("file"):
            return FileUpload(self._staging / uuid.uuid4().hex, self.max_bytes)

    def keep(self, upload: FileUpload, *, filename: str, purpose: str, key_id: str, id: str | None = None) -> File:
        """Store an uploaded file; it is durable when this returns.

        Args:
            upload: Written completely.
            filename: A label, without meaning as a path.
            purpose: One of ``PURPOSES``.
            key_id: The caller's key.
            id: Of the new file; if a file has it already, that one is returned.

        Raises:
            InvalidRequest: The purpose or name is invalid, the file is empty, or the first of its JSON lines is none.
            Unavailable: The disk is full.
        """
        if purpose not in PURPOSES:
            raise InvalidRequest(
                f"the purpose {names.quoted(purpose)} is not supported: files here are to learn from, with the "
                "purpose fine-tune",
                param="purpose",
            )
        filename = filename.replace("\\", "/").rpartition("/")[2] or "file.jsonl"
        names.check_text(filename, param="file", max_chars=MAX_FILENAME_CHARS)
        _check_content(upload, filename)
        id = id or f"file-{secrets.token_hex(12)}"
        digest = upload.finish(self.root / f"{id}{_suffix(filename)}")
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
            if (known := _find(connection, id)) is not None:
                return known
            connection.execute(insert(files_table).values(row))
            return _get(connection, id)

    def get(self, id: str) -> File:
        """A file by its id.

        Raises:
            NotFound: It does not exist, or was deleted.
        """
        with self._database.read() as connection:
            return _get(connection, id)

    def path(self, file: File) -> Path:
        """Where a file's bytes are."""
        return self.root / f"{file.id}{_suffix(file.filename)}"

    def find(
        self, *, purpose: str | None = None, after: str | None = None, limit: int = MAX_PAGE, ascending: bool = False
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
        with self._database.read() as connection:
            if after is not None:
                if (last := _find(connection, after, deleted=True)) is None:
                    raise InvalidRequest(
                        "after names no file: give the id of the last one of the page before", param="after"
                    )
                query = query.where(
                    files_table.c.number > last.number if ascending else files_table.c.number < last.number
                )
            return Page.of([_file(row) for row in connection.execute(query)], limit)

    def delete(self, id: str, *, in_use: str | None = None) -> File:
        """Delete the bytes, for good; the row stays as a record.

        Args:
            id: The file.
            in_use: An unfinished job that needs it.

        Raises:
            NotFound: It does not exist.
            Conflict: A job needs it.
        """
        if in_use is not None:
            raise Conflict(f"{id} is needed by the job {in_use}: cancel the job first, or wait for its end")
        with self._database.write() as connection:
            file = _get(connection, id)
            connection.execute(update(files_table).where(files_table.c.id == id).values(deleted_at=datetime.now(UTC)))
        self.path(file).unlink(missing_ok=True)
        return file

    def clean(self) -> None:
        """Remove what a kill left behind: unfinished uploads, bytes without a row.

        Call it while nothing is uploaded.
        """
        for staged in self._staging.iterdir():
            staged.unlink()
        with self._database.read() as connection:
            known = set(connection.scalars(select(files_table.c.id).where(files_table.c.deleted_at.is_(None))))
        for path in self.root.iterdir():
            if path.is_file() and path.name.partition(".")[0] not in known:
                path.unlink()


def _check_content(upload: FileUpload, filename: str) -> None:
    if not upload.num_bytes or not upload.head.strip():
        raise InvalidRequest("the file is empty: upload rows to learn from", param="file", code="empty_file")
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


def _find(connection: Connection, id: str, *, deleted: bool = False) -> File | None:
    row = connection.execute(select(files_table).where(files_table.c.id == id)).one_or_none()
    return None if row is None or (row.deleted_at is not None and not deleted) else _file(row)


def _get(connection: Connection, id: str) -> File:
    if (file := _find(connection, id)) is None:
        raise NotFound(
            f"there is no file {names.quoted(id)}: it was never uploaded here, or deleted", code="file_not_found"
        )
    return file


def _file(row: Row[*tuple[Any, ...]]) -> File:
    return File(**row._mapping)
