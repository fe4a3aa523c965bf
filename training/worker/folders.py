"""The folders of jobs below a server's home: their lock, and what is deleted from them when a job has ended.

The names of their files are in `graftwork.training.run.folder`.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from graftwork.adapters.errors import ConfigurationError
from graftwork.adapters.learning.job import Job
from graftwork.adapters.storage.database import Database
from graftwork.training.run import folder as folder_module
from graftwork.training.run.folder import (
    ADAPTER_FOLDER,
    CHECKPOINTS_FOLDER,
    PARENTS_FOLDER,
    REPORT_FILE,
    TRIALS_FOLDER,
    WORDINGS_FILE,
)
from graftwork.training.worker import erasing

LOCK: Final = "worker.lock"


class JobFolders:
    """``HOME/jobs``, with a folder for each job; it is created if it does not exist."""

    def __init__(self, home: Path, database: Database) -> None:
        self._home = home
        self._database = database
        self._root = home / "jobs"
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the folders for the block.

        Raises:
            ConfigurationError: if another worker holds it.
        """
        with (self._root / LOCK).open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigurationError(
                    f"Another training worker runs on {self._home}: one a home is enough."
                ) from None
            yield

    def of(self, job: Job) -> Path:
        """Return the folder of a job; it is created if it does not exist."""
        folder = self._root / job.id
        folder.mkdir(exist_ok=True, mode=0o700)
        return folder

    def ids(self) -> list[str]:
        """Return the ids of the jobs that have a folder."""
        return [folder.name for folder in self._root.iterdir() if folder.is_dir()]

    def tidy(self, job: Job) -> None:
        """Delete what is no longer needed from the folder of a job that has ended.

        Weights are deleted. Specification, progress, result and log remain; of a job that succeeded the report, too,
        and for later rounds what was recorded of its rows, and the feedback, as far as it is still in the log.
        """
        folder = self._root / job.id
        for name in (CHECKPOINTS_FOLDER, TRIALS_FOLDER, ADAPTER_FOLDER, PARENTS_FOLDER):
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in (folder_module.ANSWERS_FILE, folder_module.SIDES_FILE, WORDINGS_FILE):
            (folder / name).unlink(missing_ok=True)
        if job.status == "succeeded":
            erasing.erase_in_folder(self._database, folder)
            return
        for name in (folder_module.FEEDBACK_FILE, folder_module.ROWS_FILE, REPORT_FILE):
            (folder / name).unlink(missing_ok=True)
