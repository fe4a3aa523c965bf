"""A planned run carried out: trained into a partial folder, sealed with its card, and renamed when it is whole."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from graftwork.adapters.errors import ConfigurationError
from graftwork.training.run.card import Card, seal
from graftwork.training.run.checkpoints import Checkpointing
from graftwork.training.run.plan import TrainingRun
from graftwork.training.run.progress import RunMetrics, SearchTrial, StepListener


def check_free(folder: Path) -> None:
    """ConfigurationError unless ``folder`` is free for a run's result: nothing that is there is ever overwritten."""
    if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        raise ConfigurationError(f"{folder} is there already. Give a folder that is not: --out FOLDER.", param="out")


def execute(
    run: TrainingRun,
    folder: Path,
    on_step: StepListener,
    checkpointing: Checkpointing | None = None,
    *,
    run_name: str = "",
) -> Card:
    """Train, seal the result with its card, and publish it at ``folder``, whole or not at all.

    Args:
        run: what `plan_run` or `assemble_run` found ready to begin.
        folder: where the PEFT folder goes; nothing may be there.
        on_step: told after each step.
        checkpointing: where checkpoints go, and from where the run goes on; None: it keeps none.
        run_name: what trackers call it.

    Raises what ``trainer.train`` raises; then nothing is at ``folder``.
    """
    check_free(folder)
    with _published_when_whole(folder) as partial:
        metrics = _train(run, partial, on_step, checkpointing, run_name or run.name)
        card = card_of(run, metrics, datetime.now(UTC))
        seal(partial, card)
    return card


@contextmanager
def _published_when_whole(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder`` to write into; it becomes ``folder`` at the end, and is removed after an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial-{secrets.token_hex(4)}")
    partial.mkdir()
    try:
        yield partial
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _train(
    run: TrainingRun, folder: Path, on_step: StepListener, checkpointing: Checkpointing | None, run_name: str
) -> RunMetrics:
    from graftwork.training.run import trainer  # torch

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
    )


def card_of(
    run: TrainingRun, metrics: RunMetrics, trained_at: datetime, *, trials: tuple[SearchTrial, ...] = ()
) -> Card:
    """How the version came about that this run ended in."""
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
