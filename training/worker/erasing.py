"""What training keeps outside of the database, and who was erased: taken out of data sets and of the folders of jobs.

Whatever is killed: what is to be done stands in the database until it is done, and is done again from the beginning.
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
    """Do what is pending, below a server's home. A run that has begun goes on with what it has read: it must end in
    the same bits, however often it is begun."""
    for wish in pending_erasures(database):
        lineage = Lineage(database)
        changed = DataStore(home / data_sets.FOLDER).erase(wish.answers)
        for data_set in changed:
            # Of what was trained on it by hand no job has said so.
            lineage.record(data_set.digest, wish.answers)
        learned = lineage.data_digests(wish.answers)
        for folder in (home / "jobs").iterdir():
            if folder.is_dir() and ((folder / RESULT_FILE).exists() or not (folder / SPEC_FILE).exists()):
                erase_in_folder(database, folder, learned)
        finish_erasure(database, wish)
        log.info("%d answers were erased; %d data sets had some", len(wish.answers), len(changed))


def erase_in_folder(database: Database, folder: Path, data_digests: Collection[str] = ()) -> None:
    """Take out of a run's folder what is gone from the log; its report as well, which quotes its data, if it had
    any of that or is about one of these data sets."""
    kept = folder / FEEDBACK_FILE
    had_some = kept.exists() and remove_erased(database, kept)
    if had_some or (data_digests and _digest(folder) in data_digests):
        (folder / REPORT_FILE).unlink(missing_ok=True)


def _digest(folder: Path) -> str | None:
    path = folder / RESULT_FILE
    digest: str | None = json.loads(path.read_bytes()).get("data_digest") if path.exists() else None
    return digest
