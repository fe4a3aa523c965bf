"""A run that ended well → a version at the server, the alias for candidates, the file with its measurements.

Done again after any death it comes to the same version and the same file. Once the version is there, nothing that goes
wrong fails its job: it is told. Knows nothing of how long to try.
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
from graftwork.adapters.learning.job import Job, NewJobEvent
from graftwork.adapters.names import split_model
from graftwork.adapters.storage.durable import DISK_FULL
from graftwork.clients.client import Client
from graftwork.clients.errors import GraftworkAPIError, GraftworkClientError, GraftworkConnectionError, ServerError
from graftwork.clients.types.adapters import Version
from graftwork.training.run import folder as folder_module
from graftwork.training.worker import events

log = logging.getLogger(__name__)

TRANSIENT_STATUSES: Final = frozenset({429, 502, 503, 504})
"""What a server answers that starts, drains or is busy, and a proxy in its place."""


class PushDeferred(Exception):
    """The server cannot take it just now. ``broken``: something failed there, which may not pass however long one
    waits."""

    def __init__(self, message: str, *, broken: bool) -> None:
        super().__init__(message)
        self.broken = broken


class PushRefused(GraftworkError):
    """The server took everything but this version."""

    default_code = "push_refused"


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """``url``: where the server listens. ``key``: that it takes, if it asks for one."""

    url: str
    key: str | None = field(repr=False)
    files: Files
    lineage: Lineage

    def push(self, job: Job, folder: Path, result: Mapping[str, Any]) -> tuple[str, list[NewJobEvent]]:
        """The version, which is the same however often it is pushed, and what became of the alias for candidates.
        Raises PushDeferred when the server cannot take it just now, and PushRefused when it never will or its disk is
        full."""
        digest = result.get("data_digest")
        answers = folder / folder_module.ANSWERS_FILE
        if digest and answers.exists():
            # Before the version can be seen: whatever learned from somebody's words is on record.
            self.lineage.record(digest, json.loads(answers.read_bytes()))
        card = result.get("card") or {}
        parent_name, number = split_model(job.parent) if job.parent else (None, "0")
        try:
            with Client(self.url, self.key) as client:
                version, told = _registered(
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
                return version.id, [*told, *_move_alias(client, version, card.get("gates"))]
        except (GraftworkConnectionError, GraftworkAPIError) as error:
            if _passes(error):
                raise PushDeferred(str(error), broken=False) from error
            if isinstance(error, ServerError) and error.code != DISK_FULL:
                raise PushDeferred(str(error), broken=True) from error
            raise PushRefused(str(error), code=getattr(error, "code", None)) from error

    def keep_results(self, job: Job, folder: Path) -> tuple[list[str], list[NewJobEvent]]:
        """The id of the file with the run's measurements; none on a full disk, and an event that says so. Raises
        Unavailable when the database is busy."""
        try:
            with self.files.upload() as upload:
                upload.write(events.results_csv(folder))
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


def _passes(error: GraftworkClientError) -> bool:
    """Whether it is only a matter of time, and be it until the server is started again."""
    if isinstance(error, GraftworkAPIError):
        return error.status in TRANSIENT_STATUSES and error.code != DISK_FULL
    return isinstance(error, GraftworkConnectionError)


def _registered(client: Client, job: Job, push: Callable[[], Version]) -> tuple[Version, list[NewJobEvent]]:
    """The version. When the server does not take it: the one that an attempt of this job pushed, which died before that
    was on record."""
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


def _move_alias(client: Client, version: Version, gates: Mapping[str, Any] | None) -> list[NewJobEvent]:
    """Point `names.CANDIDATE` at a version that passed all gates, and say so; or say why it stays where it is.
    ``gates`` are None for a version that nobody judged."""
    if gates is None:
        return []
    alias = f"{version.name}@{names.CANDIDATE}"
    if not gates["passed"]:
        why = "; ".join(gates["refusals"])
        return [NewJobEvent(message=f"{alias} stays where it is, the gates refuse: {why}.", level="warn")]
    try:
        client.adapters.promote(version.name, version.version, alias=names.CANDIDATE, reason="it passed all gates")
    except GraftworkClientError as error:
        if _passes(error):
            raise
        return [NewJobEvent(message=f"All gates are passed, and {alias} stays where it is: {error}", level="warn")]
    return [NewJobEvent(message=f"All gates are passed: {alias} is {version.id} now.")]
