"""Checks of a job's data before its run, and the export of feedback to a file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.feedback.feedback import FeedbackFilter, FeedbackLog
from graftwork.adapters.feedback.ids import InteractionIds
from graftwork.adapters.feedback.interactions import Interactions
from graftwork.adapters.learning.job import NewJobEvent
from graftwork.adapters.storage.database import Database
from graftwork.adapters.storage.durable import write_durably
from graftwork.adapters.storage.settings import INTERACTION_IDS, secret
from graftwork.training.data.bad_rows import no_usable_rows
from graftwork.training.data.read.columns import Columns
from graftwork.training.data.read.source import file_sources
from graftwork.training.data.row import SPLITS, BadRow, Row
from graftwork.training.data.store import DataStore

_BAD_ROWS_KEPT: Final = 10

_AT_ONCE: Final = 500
"""Number of interactions in a query."""


def check_files(paths: Iterable[Path], param: str, *, graded: bool = False) -> tuple[list[NewJobEvent], set[str]]:
    """Check that files have usable rows.

    Args:
        paths: the files.
        param: the parameter of the job to name in errors.
        graded: whether rows are questions for a grader.

    Returns:
        Events for the job, and the ids of the logged interactions that the rows were made from.

    Raises:
        InvalidRequest: if a file cannot be read, or there is no usable row; the message names the first bad rows.
    """
    bad: list[BadRow] = []
    expired: list[BadRow] = []
    num_bad = num_expired = num_good = 0
    answers: set[str] = set()
    names = []
    try:
        for source in file_sources(list(paths), Columns(graded=graded)):
            names.append(source.title)
            for row in source.rows():
                if isinstance(row, Row):
                    num_good += 1
                    answers.update(row.interactions)
                else:
                    num_expired += row.expired
                    num_bad += not row.expired
                    shown = expired if row.expired else bad
                    shown += [row] if len(shown) < _BAD_ROWS_KEPT else []
        if not num_good:
            raise no_usable_rows(" and ".join(names), bad or expired)
    except InvalidRequest as error:
        raise InvalidRequest(error.message, param=param, code=error.code) from None
    events = []
    if num_bad:
        lines = "; ".join(str(row) for row in bad[:3]) + (f"; and {num_bad - 3} more" if num_bad > 3 else "")
        events.append(
            NewJobEvent(message=f"{num_bad} of {num_bad + num_good} rows cannot be used: {lines}", level="warn")
        )
    if num_expired:
        message = (
            f"{num_expired} of {num_expired + num_bad + num_good} judged answers are no longer in the log: what was "
            "said of them is left out"
        )
        events.append(NewJobEvent(message=message))
    return events, answers


def check_data_set(folder: Path) -> tuple[list[NewJobEvent], set[str]]:
    """Check that a stored data set is unchanged on disk.

    Args:
        folder: the folder of its version.

    Returns:
        As for `check_files`.

    Raises:
        NotFound: if there is no such data set.
        GraftworkError: if it was changed.
    """
    stored = DataStore(folder.parent.parent).get(f"{folder.parent.name}@{folder.name}")
    stored.verify()
    return [], {id for side in SPLITS for row in stored.rows(side) for id in row.interactions}


def write_feedback(database: Database, name: str, target: Path) -> int:
    """Write all feedback on an adapter's answers, and those answers, to a file. An existing file is not changed.

    Args:
        database: the database with the log.
        name: the name of the adapter.
        target: the file, in JSON lines.

    Returns:
        The number of feedback records.

    Raises:
        InvalidRequest: if there is no feedback.
    """
    ids = InteractionIds(secret(database, INTERACTION_IDS))
    feedback = list(FeedbackLog(database, ids).each(FeedbackFilter(adapter=name)))
    if not feedback:
        raise InvalidRequest(
            f"nothing was said of the answers of {name} yet: send feedback, or give a file",
            param="training_file",
            code="no_feedback",
        )
    if not target.exists():
        # Only answers with feedback: those of shadow arms, which no user has seen, may have none.
        about = {one.interaction_id for one in feedback}
        about |= {one.preferred_over for one in feedback if one.preferred_over}
        answers = _answers(Interactions(database, ids), about)
        write_durably(target, "".join(_line(row) for row in (*answers, *feedback)))
    return len(feedback)


def remove_erased(database: Database, kept: Path) -> bool:
    """Remove answers and feedback from a file of `write_feedback` that were erased from the log or have expired.

    Args:
        database: the database with the log.
        kept: the file.

    Returns:
        Whether anything was removed.
    """
    ids = InteractionIds(secret(database, INTERACTION_IDS))
    rows = [json.loads(line) for line in kept.read_text(encoding="utf-8").split("\n") if line]
    answers = {row["id"] for row in rows if "completions" in row}
    there = {answer.id for answer in _answers(Interactions(database, ids), answers)}
    gone = answers - there
    log = FeedbackLog(database, ids)
    about = {row["interaction_id"] for row in rows if "interaction_id" in row} - gone
    erased = {one.id for id in sorted(about) for one in log.each(FeedbackFilter(interaction_id=id)) if one.erased_at}
    remaining = [
        row
        for row in rows
        if (row["id"] in there if "completions" in row else row["interaction_id"] in about and row["id"] not in erased)
    ]
    if len(remaining) < len(rows):
        write_durably(kept, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in remaining))
    return len(remaining) < len(rows)


def _answers(interactions: Interactions, ids: set[str]) -> Iterator[Any]:
    wanted = sorted(ids)
    for start in range(0, len(wanted), _AT_ONCE):
        yield from interactions.get_many(wanted[start : start + _AT_ONCE]).values()


def _line(row: Any) -> str:
    return json.dumps(asdict(row), ensure_ascii=False, default=_plain) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.timestamp()
    return dict(value)
