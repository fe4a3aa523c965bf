"""Backups of a home: made while its server runs, checked by digests, restored as a whole.

A backup is a folder::

    manifest.json     every file below it, with its size and SHA-256
    graftwork.db      the database at one moment
    artifacts/        the versions' files
    files/            what was uploaded, and results
    datasets/         data sets that were kept

What the database of a backup names is in the backup: files are written before the rows that name them, so the database
is copied first. They are removed or replaced after those rows (an erasure rewrites kept data sets): where that happened
meanwhile, all is looked at once more. What a server makes again is left out: the base, kernels, and the folders of
runs, which begin again.

Backups are as private as the home: folders are 0700, files 0600.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Final

from graftwork.adapters.base.atomic_files import partial_of, publish
from graftwork.adapters.base.progress import Progress
from graftwork.adapters.errors import ConfigurationError
from graftwork.adapters.learning import data_sets
from graftwork.adapters.storage import database_id
from graftwork.adapters.storage.database import DATABASE_FILE
from graftwork.adapters.storage.durable import write_durably

FOLDERS: Final = ("artifacts", "files", data_sets.FOLDER)
MANIFEST: Final = "manifest.json"

_FORMAT: Final = 1
_STAGING: Final = "staging"
"""A folder of unfinished files, which no row names."""

_MOST_PASSES: Final = 10
"""How often a home is looked at once more because files went away or were replaced meanwhile."""

_BLOCK: Final = 1 << 20

_FileState = tuple[int, int, int]
"""Inode, size in bytes, and time of change in nanoseconds: another one means that a file was replaced."""


@dataclass(frozen=True, kw_only=True)
class SavedFile:
    """A file of a backup: its path below it, its size in bytes, and its SHA-256 in hexadecimal digits."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a backup consists of."""

    created_at: str
    files: tuple[SavedFile, ...]

    @property
    def total_bytes(self) -> int:
        """The size of all its files."""
        return sum(file.bytes for file in self.files)

    def to_json(self) -> dict[str, Any]:
        """The manifest in JSON's types."""
        return {"format": _FORMAT, **asdict(self)}


def back_up(home: Path, target: Path, progress: Progress) -> Manifest:
    """Save a home while its server may be running.

    Args:
        home: The folder of a server whose database is in it.
        target: The folder to make; it appears when all of it is on disk.
        progress: Told how far it is.

    Raises:
        ConfigurationError: There is no database, or the home belongs to another one; the target exists, or files went
            away again and again.
        OSError: Something cannot be read or written.
    """
    if not (home / DATABASE_FILE).is_file():
        raise ConfigurationError(f"{home} has no {DATABASE_FILE}: name the server's home with --home")
    database_id.check_own(home)  # one that was moved to PostgreSQL has an old database, which lacks what came later
    target = target.absolute()
    if target.exists():
        raise ConfigurationError(f"{target} exists already: name a folder that does not")
    with _partial_of(target) as partial:
        saved: dict[str, tuple[_FileState, SavedFile]] = {}
        for _ in range(_MOST_PASSES):
            before = _files(home)
            for old in [path for path, (state, _) in saved.items() if before.get(path) != state]:
                (partial / old).unlink()
                del saved[old]
            progress("Copying the database", None)
            database = _copy_database(home / DATABASE_FILE, partial / DATABASE_FILE)
            found = _files(home)
            copied = _copy_files(home, partial, sorted(found.keys() - saved.keys()), progress)
            saved |= {path: (found[path], file) for path, file in copied.items()}
            after = _files(home)
            was_replaced = any(after.get(path, state) != state for path, (state, _) in saved.items())
            if not was_replaced and all(after.get(path) == state for path, state in before.items()):
                break
        else:
            raise ConfigurationError("files of the home are removed all the time: try again when less is erased")
        files = (database, *(saved[path][1] for path in sorted(saved)))
        manifest = Manifest(created_at=datetime.now(UTC).isoformat(timespec="seconds"), files=files)
        write_durably(partial / MANIFEST, json.dumps(manifest.to_json(), indent=1))
        (partial / MANIFEST).chmod(0o600)
        progress("Writing it to disk", None)
        publish(partial, target)
    return manifest


def restore(backup: Path, home: Path, progress: Progress) -> Manifest:
    """Make a home from a backup, after every file was compared with its digest.

    Args:
        backup: A folder that `back_up` made.
        home: The folder to make; it appears when all of it is on disk. It may be there if it is empty.
        progress: Told how far it is.

    Raises:
        ConfigurationError: It is no backup, something of it is missing or was changed, or the home is not empty.
        OSError: Something cannot be read or written.
    """
    manifest = read_manifest(backup)
    home = home.absolute()
    if home.is_dir() and not any(home.iterdir()):
        home.rmdir()
    if home.exists():
        raise ConfigurationError(f"{home} is not empty: restore into a new folder")
    with _partial_of(home) as partial:
        done = 0
        for file in manifest.files:
            progress("Restoring", done / max(1, manifest.total_bytes))
            try:
                restored = _copy(backup, partial, file.path)
            except FileNotFoundError as error:
                raise ConfigurationError(f"the backup {backup} is damaged: {file.path} is missing") from error
            if restored != file:
                raise ConfigurationError(f"the backup {backup} is damaged: {file.path} is not what was saved")
            done += file.bytes
        progress("Writing it to disk", None)
        publish(partial, home)
    return manifest


def read_manifest(backup: Path) -> Manifest:
    """What a backup should consist of.

    Raises:
        ConfigurationError: It is no backup, or one of a newer version.
    """
    try:
        fields = json.loads((backup / MANIFEST).read_text(encoding="utf-8"))
        if fields["format"] != _FORMAT:
            raise ConfigurationError(f"the backup {backup} was made by a newer version: restore it with that one")
        files = tuple(SavedFile(**file) for file in fields["files"])
        manifest = Manifest(created_at=fields["created_at"], files=files)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{backup} is no backup: its {MANIFEST} cannot be read ({error})") from error
    paths = [file.path for file in files]
    if wrong := [path for path in paths if not _is_ours(path)]:
        raise ConfigurationError(f"the backup {backup} is damaged: it has the path {wrong[0]!r}")
    if DATABASE_FILE not in paths:
        raise ConfigurationError(f"the backup {backup} is damaged: it has no {DATABASE_FILE}")
    return manifest


@contextmanager
def _partial_of(folder: Path) -> Iterator[Path]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with partial_of(folder) as partial:
        if partial is None:
            raise ConfigurationError(f"{folder} was made by another process in this moment")
        yield partial


def _is_ours(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return path == DATABASE_FILE or (len(parts) > 1 and parts[0] in FOLDERS and ".." not in parts)


def _files(home: Path) -> dict[str, _FileState]:
    """The finished files of a home but its database, by their paths below it."""
    found: dict[str, _FileState] = {}
    for name in FOLDERS:
        for folder, subfolders, filenames in os.walk(home / name):
            if Path(folder) == home / name and _STAGING in subfolders:
                subfolders.remove(_STAGING)
            for filename in filenames:
                path = Path(folder) / filename
                with suppress(FileNotFoundError):
                    of = path.lstat()
                    found[path.relative_to(home).as_posix()] = (of.st_ino, of.st_size, of.st_mtime_ns)
    return found


def _copy_files(home: Path, partial: Path, paths: Sequence[str], progress: Progress) -> dict[str, SavedFile]:
    """Copy files. One that goes away meanwhile is left out."""
    copied = {}
    for index, path in enumerate(paths):
        progress("Copying files", index / len(paths))
        try:
            copied[path] = _copy(home, partial, path)
        except FileNotFoundError:
            (partial / path).unlink(missing_ok=True)
    return copied


def _copy_database(source: Path, target: Path) -> SavedFile:
    """Copy a database at one moment, beside its writers."""
    target.unlink(missing_ok=True)
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        with (
            closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as open_source,
            closing(sqlite3.connect(target)) as copy,
        ):
            open_source.backup(copy)
            # One file: a write-ahead log beside it would have to be saved with it.
            copy.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.DatabaseError as error:
        raise ConfigurationError(f"{source} cannot be copied: {error}") from error
    with target.open("rb") as file:
        return SavedFile(
            path=DATABASE_FILE, bytes=target.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest()
        )


def _copy(source: Path, target: Path, path: str) -> SavedFile:
    """Copy the file at ``path`` below one folder to the same place below another."""
    descriptor = os.open(source / path, os.O_RDONLY | os.O_NOFOLLOW)
    folder = target
    for part in PurePosixPath(path).parts[:-1]:
        folder /= part
        folder.mkdir(mode=0o700, exist_ok=True)
    digest, count = hashlib.sha256(), 0
    with (
        open(descriptor, "rb") as reader,
        open(os.open(target / path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as writer,
    ):
        while block := reader.read(_BLOCK):
            writer.write(block)
            digest.update(block)
            count += len(block)
    return SavedFile(path=path, bytes=count, sha256=digest.hexdigest())
