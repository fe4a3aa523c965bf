"""Execution of a planned run: training into a temporary folder, the model card, and an atomic rename."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from graftwork.adapters.collector import collector_paused
from graftwork.adapters.errors import ConfigurationError
from graftwork.clients.client import Client
from graftwork.training.run.card import Card, seal
from graftwork.training.run.checkpoints import Checkpointing
from graftwork.training.run.plan import TrainingRun
from graftwork.training.run.progress import RunMetrics, SearchTrial, StepListener


def check_free(folder: Path) -> None:
    """Check that a folder can take the result of a run: it does not exist, or is empty.

    Raises:
        ConfigurationError: if it is not free.
    """
    if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        raise ConfigurationError(f"{folder} is there already. Give a folder that is not: --out FOLDER.", param="out")


def execute(
    run: TrainingRun,
    folder: Path,
    on_step: StepListener,
    checkpointing: Checkpointing | None = None,
    *,
    run_name: str = "",
    client: Client | None = None,
) -> Card:
    """Train, write the model card, and publish the result atomically.

    Args:
        run: the run, from `plan_run` or `assemble_run`.
        folder: the PEFT folder to create; it must be free.
        on_step: called after each step.
        checkpointing: how checkpoints are saved; the run resumes from the newest one. None saves none.
        run_name: name of the run in trackers; the adapter's name by default.
        client: the client of the server whose models grade answers; only needed for graders that ask one.

    Raises:
        ConfigurationError: if the folder is not free.
        GraftworkError, RunStopped: as `graftwork.training.run.trainer.train` raises them. Nothing is written to the
            folder in that case.
    """
    check_free(folder)
    with _published_when_complete(folder) as partial:
        metrics = _train(run, partial, on_step, checkpointing, run_name or run.name, client)
        card = card_of(run, metrics, datetime.now(UTC))
        seal(partial, card)
    return card


@contextmanager
def _published_when_complete(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``folder``. It is renamed to it at the end, or removed after an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial-{secrets.token_hex(4)}")
    partial.mkdir()
    try:
        yield partial
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _train(
    run: TrainingRun,
    folder: Path,
    on_step: StepListener,
    checkpointing: Checkpointing | None,
    run_name: str,
    client: Client | None,
) -> RunMetrics:
    with collector_paused():
        from graftwork.training.run import trainer  # TRL

    return trainer.train(
        run.base,
        run.rows,
        run.validation,
        run.config,
        folder,
        on_step,
        parent=run.parent.folder if run.parent else None,
        teacher=run.teacher,
        replay_validation=run.replay_validation,
        keeping=checkpointing,
        run_name=run_name,
        client=client,
    )


def card_of(
    run: TrainingRun, metrics: RunMetrics, trained_at: datetime, *, trials: tuple[SearchTrial, ...] = ()
) -> Card:
    """Build the model card of a finished run.

    Args:
        run: the run.
        metrics: its metrics.
        trained_at: when it was finished.
        trials: all trials, if it is the best one of a search.
    """
    return Card(
        name=run.name,
        base_id=run.base.id,
        base_digest=run.base.digest,
        parent=run.parent.version if run.parent else None,
        parent_name=run.parent.name if run.parent else None,
        data=run.data,
        data_digest=run.data_digest,
        num_rows=len(run.rows),
        num_augmented=run.num_augmented,
        num_replayed=run.num_replayed,
        num_validation_rows=len(run.validation),
        num_bad_rows=run.num_bad,
        config=run.config,
        reason=run.reason,
        metrics=metrics,
        trained_at=trained_at,
        trials=trials,
    )
