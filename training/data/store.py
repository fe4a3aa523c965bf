"""The store of versioned data sets: ``HOME/datasets/NAME/N/``. Each version is a folder that appears atomically.

::

    support/3/manifest.json     digests, counts, sources, policy, the report
    support/3/train.jsonl       one row per line, in TRL's formats
    support/3/validation.jsonl
    support/3/test.jsonl

A version is immutable, except that the rows of a user can be erased from it. The manifest then records the erasure and
keeps the digest of the rows that had been learned from. Saving the same rows again returns the same version.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from graftwork.adapters import names
from graftwork.adapters.errors import GraftworkError, InvalidRequest, NotFound
from graftwork.adapters.storage.durable import sync_folder
from graftwork.training.data.pipeline import PreparedDataSet
from graftwork.training.data.report.numbers import DataReport, report_from_json
from graftwork.training.data.row import SPLITS, Row, SplitName

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
STAGED: Final = ".staged-"
ERASING: Final = ".erasing-"
ERASED: Final = ".erased-"


@dataclass(frozen=True, kw_only=True)
class StoredDataSet:
    """One version of a data set, on disk.

    Attributes:
        name: the name of the data set.
        version: its version, from 1.
        folder: the folder of the version.
        digest: ``sha256:…`` over the rows as saved, before any erasure.
        created_at: when it was saved, in UTC.
        manifest: the content of ``manifest.json``.
    """

    name: str
    version: int
    folder: Path
    digest: str
    created_at: datetime
    manifest: Mapping[str, Any]

    @property
    def id(self) -> str:
        """Name and version: ``support@3``."""
        return f"{self.name}@{self.version}"

    @property
    def report(self) -> DataReport:
        """The report of the data set, from the manifest."""
        return report_from_json(self.manifest["report"])

    @property
    def num_rows(self) -> dict[SplitName, int]:
        """Number of rows in each split, after erasures."""
        return {side: int(self.manifest["files"][side]["rows"]) for side in SPLITS}

    def rows(self, side: SplitName) -> Iterator[Row]:
        """Yield the rows of one split, in order.

        Raises:
            GraftworkError: while iterating, if the file was changed so that it cannot be read. Other changes are found
                by `verify`.
        """
        path = self.folder / f"{side}.jsonl"
        with path.open(encoding="utf-8") as file:
            for line, text in enumerate(file, start=1):
                try:
                    yield Row.from_json(json.loads(text))
                except (ValueError, KeyError, TypeError) as error:
                    raise GraftworkError(
                        f"{path} is broken at line {line}: somebody changed it. Make the data set again.",
                        code="data_set_broken",
                    ) from error

    def verify(self) -> None:
        """Compare all files with the digests in the manifest.

        Raises:
            GraftworkError: if a file is missing or was changed.
        """
        for side in SPLITS:
            path = self.folder / f"{side}.jsonl"
            if not path.is_file() or _digest(path) != self.manifest["files"][side]["digest"]:
                raise GraftworkError(
                    f"{path} is not as it was written. Make the data set again.", code="data_set_broken"
                )

    def interactions(self) -> Iterator[str]:
        """Yield the ids of the logged interactions that the rows were made from, possibly with repetitions."""
        for side in SPLITS:
            for row in self.rows(side):
                yield from row.interactions


class DataStore:
    """The data sets below one folder. The folder need not exist yet."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(
        self, name: str, prepared: PreparedDataSet, *, made_by: Mapping[str, Any] | None = None
    ) -> tuple[StoredDataSet, bool]:
        """Save a data set as the next version of ``name``, unless the newest version has the same rows and splits.

        Args:
            name: the name of the data set.
            prepared: the rows and their report.
            made_by: provenance for the manifest, in JSON's types.

        Returns:
            The version, and whether it is new.

        Raises:
            InvalidRequest: if the name is invalid.
        """
        _check_name(name)
        newest = self.newest(name)
        if newest is not None and newest.manifest["report"]["side_digests"] == prepared.report.side_digests:
            return newest, False
        home = self._folder / name
        home.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(home)
        staged = home / f"{STAGED}{secrets.token_hex(8)}"
        staged.mkdir()
        try:
            files = {}
            for side in SPLITS:
                path = staged / f"{side}.jsonl"
                num = _write_rows(path, prepared.rows(side))
                files[side] = {"rows": num, "digest": _digest(path)}
            manifest = {
                "format": FORMAT,
                "name": name,
                "digest": prepared.digest,
                "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
                "files": files,
                "policy": prepared.policy.to_json(),
                "made_by": dict(made_by or {}),
                "erased": [],
                "report": prepared.report.to_json(),
            }
            version = self._publish(staged, home, manifest)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        return self.get(f"{name}@{version}"), True

    def get(self, reference: str) -> StoredDataSet:
        """Return a version by reference: ``support@3``, or ``support`` for its newest version.

        Raises:
            NotFound: if there is no such version; the message lists those that exist.
            GraftworkError: if the manifest cannot be read.
        """
        name, at, number = reference.partition("@")
        found = None
        if names.is_name(name) and not at:
            found = self.newest(name)
        elif names.is_name(name) and number.isdecimal():
            found = self._read(self._folder / name / number)
        if found is None:
            there = ", ".join(stored.id for stored in self.all()) or "none yet"
            raise NotFound(
                f"There is no data set {names.quoted(reference)}; there is {there}. Make one with graftwork data check "
                "FILE --save NAME.",
                param="data",
                code="data_set_not_found",
            )
        return found

    def newest(self, name: str) -> StoredDataSet | None:
        """Return the newest version of a data set; None if there is none."""
        versions = self._versions(self._folder / name)
        return self._read(self._folder / name / str(versions[-1])) if versions else None

    def all(self) -> list[StoredDataSet]:
        """Return every version of every data set, ordered by name and version."""
        if not self._folder.is_dir():
            return []
        return [
            stored
            for home in sorted(path for path in self._folder.iterdir() if names.is_name(path.name))
            for version in self._versions(home)
            if (stored := self._read(home / str(version))) is not None
        ]

    def earlier_sides(self, name: str) -> dict[int, SplitName]:
        """Return the split of each question in the newest version, by `Row.question_key`. Given to ``prepare``, it
        ensures that no question that was trained on is held out later."""
        newest = self.newest(name)
        if newest is None:
            return {}
        # Training last: where a source put a question into two splits, it counts as trained on.
        return {row.question_key(): side for side in reversed(SPLITS) for row in newest.rows(side)}

    def erase(self, interactions: Collection[str] = (), *, groups: Collection[str] = ()) -> list[StoredDataSet]:
        """Erase rows from all versions of all data sets.

        Args:
            interactions: ids of logged interactions; the rows made from them are erased.
            groups: groups of users (`row.group_of`) whose rows are erased.

        Returns:
            The versions that were changed, as they are now.
        """
        unwanted, of_groups = frozenset(interactions), frozenset(groups)

        def is_erased(row: Row) -> bool:
            return row.group in of_groups or not unwanted.isdisjoint(row.interactions)

        return [
            self._erase(stored, is_erased)
            for stored in self.all()
            if any(is_erased(row) for side in SPLITS for row in stored.rows(side))
        ]

    def _erase(self, stored: StoredDataSet, is_erased: Callable[[Row], bool]) -> StoredDataSet:
        staged = stored.folder.with_name(f"{ERASING}{stored.version}")
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir()
        files, num_erased = {}, 0
        for side in SPLITS:
            path = staged / f"{side}.jsonl"
            num = _write_rows(path, (row for row in stored.rows(side) if not is_erased(row)))
            num_erased += stored.num_rows[side] - num
            files[side] = {"rows": num, "digest": _digest(path)}
        event = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "rows": num_erased}
        manifest = {**stored.manifest, "files": files, "erased": [*stored.manifest["erased"], event]}
        # The report contains excerpts of rows, too.
        manifest["report"] = {**manifest["report"], "conflicts": [], "twins": [], "near_conflicts": [], "bad": []}
        _write(staged / MANIFEST, json.dumps(manifest, ensure_ascii=False, indent=1))
        sync_folder(staged)
        stored.folder.rename(stored.folder.with_name(f"{ERASED}{secrets.token_hex(8)}"))
        _finish_erasures(stored.folder.parent)
        return self.get(stored.id)

    def _publish(self, staged: Path, home: Path, manifest: Mapping[str, Any]) -> int:
        while True:
            version = (self._versions(home) or [0])[-1] + 1
            _write(staged / MANIFEST, json.dumps({**manifest, "version": version}, ensure_ascii=False, indent=1))
            sync_folder(staged)
            try:
                staged.rename(home / str(version))
            except OSError:
                if not (home / str(version)).exists():
                    raise
                continue  # another process published this version number
            sync_folder(home)
            return version

    def _versions(self, home: Path) -> list[int]:
        if not home.is_dir():
            return []
        _finish_erasures(home)
        return sorted(int(path.name) for path in home.iterdir() if path.name.isdecimal())

    def _read(self, folder: Path) -> StoredDataSet | None:
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise GraftworkError(
                f"{folder / MANIFEST} cannot be read ({error}). Remove the folder and make the data set again.",
                code="data_set_broken",
            ) from error
        if manifest["format"] != FORMAT:
            raise GraftworkError(
                f"{folder} was written by another version of Graftwork. Make the data set again.",
                code="data_set_broken",
            )
        return StoredDataSet(
            name=manifest["name"],
            version=manifest["version"],
            folder=folder,
            digest=manifest["digest"],
            created_at=datetime.fromisoformat(manifest["created_at"]),
            manifest=manifest,
        )


def _finish_erasures(home: Path) -> None:
    """Move rewritten versions into place and delete those they replace; completes erasures that a crash interrupted."""
    for staged in home.glob(f"{ERASING}*"):
        place = home / staged.name.removeprefix(ERASING)
        if not place.exists() and (staged / MANIFEST).is_file():
            # Another process may do the same at the same time: one of the two does it.
            with contextlib.suppress(FileNotFoundError):
                staged.rename(place)
            sync_folder(home)
    for erased in home.glob(f"{ERASED}*"):
        shutil.rmtree(erased, ignore_errors=True)


def _remove_leftovers(home: Path) -> None:
    """Delete staging folders that a crash left behind, once they are a day old and certainly not in use."""
    for staged in home.glob(f"{STAGED}*"):
        with contextlib.suppress(FileNotFoundError):  # another process has just published it
            if time.time() - staged.stat().st_mtime > 86_400:
                shutil.rmtree(staged, ignore_errors=True)


def _check_name(name: str) -> None:
    if not names.is_name(name):
        raise InvalidRequest(
            f"{names.quoted(name)} cannot be a data set's name: use 1 to 64 characters out of a-z, 0-9, '.', '_' and "
            "'-', the first one a letter or a digit",
            param="name",
            code="invalid_name",
        )


def _write_rows(path: Path, rows: Iterator[Row]) -> int:
    num = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row.to_json(), ensure_ascii=False))
            file.write("\n")
            num += 1
        file.flush()
        os.fsync(file.fileno())
    path.chmod(0o400)
    return num


def _write(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    path.chmod(0o400)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
