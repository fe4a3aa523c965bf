"""Publication of a finished run: a version on the server, the alias for candidates, and the file of its measurements.

All of it is idempotent: repeated after a crash, it results in the same version and the same file. Errors after the
version is registered do not fail the job; they become events.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from graftwork.adapters import names
from graftwork.adapters.errors import GraftworkError, Unavailable
from graftwork.adapters.feedback.lineage import Lineage
from graftwork.adapters.learning.files import Files
from graftwork.adapters.learning.gate_results import GateSummary
from graftwork.adapters.learning.job import Job, NewJobEvent
from graftwork.adapters.learning.split_ledger import SplitLedger
from graftwork.adapters.names import split_model
from graftwork.adapters.storage.durable import DISK_FULL
from graftwork.clients.client import Client
from graftwork.clients.errors import GraftworkAPIError, GraftworkClientError, GraftworkConnectionError, ServerError
from graftwork.clients.types.adapters import Version
from graftwork.training.run import folder as folder_module
from graftwork.training.worker import events as run_events

log = logging.getLogger(__name__)

TRANSIENT_STATUSES: Final = frozenset({429, 502, 503, 504})
"""HTTP statuses of a server that starts, drains or is busy, and of a proxy in front of it."""


class PushDeferred(Exception):
    """Raised when the server cannot accept the version at the moment.

    Attributes:
        broken: whether the server failed with an internal error, which may be permanent.
    """

    def __init__(self, message: str, *, broken: bool) -> None:
        super().__init__(message)
        self.broken = broken


class PushRefused(GraftworkError):
    """Raised when the server permanently refuses a version."""

    default_code = "push_refused"


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """Publishes the results of runs.

    Attributes:
        url: address of the server.
        key: API key of the server, if it requires one.
        files: the store of result files.
        lineage: the record of interactions that versions learned from.
        ledger: the record of the questions that they learned from, or held out.
    """

    url: str
    key: str | None = field(repr=False)
    files: Files
    lineage: Lineage
    ledger: SplitLedger

    def push(self, job: Job, folder: Path, result: Mapping[str, Any]) -> tuple[str, list[NewJobEvent]]:
        """Push the adapter of a job as a version, and move the alias for candidates if the gates do not refuse it.

        Args:
            job: the job.
            folder: the folder of its run.
            result: the content of ``result.json``.

        Returns:
            The id of the version, which is the same if it was pushed before, and events for the job.

        Raises:
            PushDeferred: if the server cannot accept it at the moment.
            PushRefused: if the server refuses it, or its disk is full.
        """
        digest = result.get("data_digest")
        answers = folder / folder_module.ANSWERS_FILE
        if digest and answers.exists():
            # Before the version is visible, so that an erasure finds all versions that learned from a user.
            self.lineage.record(digest, json.loads(answers.read_bytes()))
        sides = folder / folder_module.SIDES_FILE
        if sides.exists():
            self.ledger.record(job.name, json.loads(sides.read_bytes()))
        card = result.get("card") or {}
        parent_name, number = split_model(job.parent) if job.parent else (None, "0")
        try:
            with Client(self.url, self.key) as client:
                version, events = _push_or_find(
                    client,
                    job,
                    lambda: client.adapters.push(
                        job.name,
                        Path(result["adapter"]),
                        parent=int(number) if parent_name == job.name else None,
                        data_digest=digest,
                        metadata={**card, "job": job.id},
                    ),
                )
                return version.id, [*events, *_move_alias(client, version, GateSummary.from_metadata(card))]
        except (GraftworkConnectionError, GraftworkAPIError) as error:
            if _is_transient(error):
                raise PushDeferred(str(error), broken=False) from error
            if isinstance(error, ServerError) and error.code != DISK_FULL:
                raise PushDeferred(str(error), broken=True) from error
            raise PushRefused(str(error), code=getattr(error, "code", None)) from error

    def keep_results(self, job: Job, folder: Path) -> tuple[list[str], list[NewJobEvent]]:
        """Store the measurements of a run as a file.

        Returns:
            The ids of the stored files, and events for the job: no id and a warning if it could not be stored.

        Raises:
            Unavailable: if the database is busy.
        """
        try:
            with self.files.upload() as upload:
                upload.write(run_events.results_csv(folder))
                file = self.files.keep(
                    upload,
                    filename="step_metrics.csv",
                    purpose="fine-tune-results",
                    key_id=job.key_id,
                    id=f"file-{job.id.removeprefix('ftjob-')}",
                )
        except (GraftworkError, OSError) as error:
            if isinstance(error, Unavailable) and error.code != DISK_FULL:
                raise
            log.warning("the measurements of %s were not kept: %s", job.id, error)
            return [], [NewJobEvent(message=f"The table of measurements was not kept: {error}", level="warn")]
        return [file.id], []


def _is_transient(error: GraftworkClientError) -> bool:
    """Whether the same request may succeed later, at the latest after a restart of the server."""
    if isinstance(error, GraftworkAPIError):
        return error.status in TRANSIENT_STATUSES and error.code != DISK_FULL
    return isinstance(error, GraftworkConnectionError)


def _push_or_find(client: Client, job: Job, push: Callable[[], Version]) -> tuple[Version, list[NewJobEvent]]:
    """Push the version. If the server refuses it, return the version that an earlier attempt of this job pushed before
    it crashed, if there is one."""
    try:
        return push(), []
    except GraftworkAPIError as error:
        with contextlib.suppress(GraftworkClientError):
            for version in client.adapters.get(job.name).versions:
                if version.metadata.get("job") == job.id:
                    return version, [
                        NewJobEvent(message=f"{version.id} was pushed before; again: {error}", level="warn")
                    ]
        raise


def _move_alias(client: Client, version: Version, gates: GateSummary | None) -> list[NewJobEvent]:
    """Move the alias `names.CANDIDATE` to a version that the gates do not refuse.

    Args:
        client: the client of the server.
        version: the version.
        gates: what the gates said; None for a version that was not evaluated.

    Returns:
        An event that says that the alias was moved, or why it was not.
    """
    if gates is None:
        return []
    alias = f"{version.name}@{names.CANDIDATE}"
    if gates.outcome == "refuse":
        why = "; ".join(gates.refusals)
        return [NewJobEvent(message=f"{alias} stays where it is, the gates refuse: {why}.", level="warn")]
    scores = (version.metadata or {}).get("method") == "reward_model"
    then = "train it on more pairs" if scores else "compare it in an experiment before you promote it"
    passed = gates.outcome == "pass"
    found = "All gates are passed" if passed else f"The gates cannot say: {'; '.join(gates.doubts)}"
    reason = "it passed all gates" if passed else "the gates cannot say, an experiment can"
    try:
        client.adapters.promote(version.name, version.version, alias=names.CANDIDATE, reason=reason)
    except GraftworkClientError as error:
        if _is_transient(error):
            raise
        return [NewJobEvent(message=f"{found}, and {alias} stays where it is: {error}", level="warn")]
    if passed:
        return [NewJobEvent(message=f"{found}: {alias} is {version.id} now.")]
    return [
        NewJobEvent(
            message=f"{found}. {alias} is {version.id} now: {then}.",
            level="warn",
        )
    ]
