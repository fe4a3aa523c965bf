"""Erasure of users from what training stores outside of the database: data sets and the folders of jobs.

Pending erasures are recorded in the database until they are completed; after a crash they start again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from pathlib import Path

from graftwork.adapters.feedback.erasure import finish_erasure, pending_erasures
from graftwork.adapters.feedback.lineage import Lineage
from graftwork.adapters.learning import data_sets
from graftwork.adapters.storage.database import Database
from graftwork.training.data.store import DataStore
from graftwork.training.run.folder import FEEDBACK_FILE, REPORT_FILE, RESULT_FILE, SPEC_FILE
from graftwork.training.worker.intake import remove_erased

log = logging.getLogger(__name__)


def erase_pending(database: Database, home: Path) -> None:
    """Complete all pending erasures below a server's home.

    The folders of unfinished runs are left alone, since a run must end in the same bits if it is started again.

    Args:
        database: the database with the pending erasures.
        home: the home of the server.
    """
    for erasure in pending_erasures(database):
        lineage = Lineage(database)
        changed = DataStore(home / data_sets.FOLDER).erase(erasure.answers)
        for data_set in changed:
            # Versions may have been trained on the data set without a job.
            lineage.record(data_set.digest, erasure.answers)
        learned = lineage.data_digests(erasure.answers)
        for folder in (home / "jobs").iterdir():
            if folder.is_dir() and ((folder / RESULT_FILE).exists() or not (folder / SPEC_FILE).exists()):
                erase_in_folder(database, folder, learned)
        finish_erasure(database, erasure)
        log.info("%d answers were erased; %d data sets had some", len(erasure.answers), len(changed))


def erase_in_folder(database: Database, folder: Path, data_digests: Collection[str] = ()) -> None:
    """Remove answers and feedback that are no longer in the log from the folder of a run.

    The report, which contains excerpts of rows, is deleted if anything was removed, or if the run used one of these
    data sets.

    Args:
        database: the database with the log.
        folder: the folder of the run.
        data_digests: digests of data sets that contained erased rows.
    """
    feedback = folder / FEEDBACK_FILE
    was_changed = feedback.exists() and remove_erased(database, feedback)
    if was_changed or (data_digests and _digest(folder) in data_digests):
        (folder / REPORT_FILE).unlink(missing_ok=True)


def _digest(folder: Path) -> str | None:
    path = folder / RESULT_FILE
    digest: str | None = json.loads(path.read_bytes()).get("data_digest") if path.exists() else None
    return digest
