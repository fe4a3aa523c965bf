"""A planned run carried out: trained into a partial folder, sealed with its card, and renamed when it is whole."""

from __future__ import annotations

import secrets
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from graftwork.adapters.errors import ConfigurationError
from graftwork.training.run.card import Card, seal
from graftwork.training.run.progress import RunMetrics, SearchTrial, StepListener

if TYPE_CHECKING:
    from graftwork.training.run.checkpoints import Checkpointing
from graftwork.training.run.plan import TrainingRun


def check_free(folder: Path) -> None:
    """ConfigurationError unless ``folder`` is free for a run's result: nothing that is there is ever overwritten."""
    if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        raise ConfigurationError(f"{folder} is there already. Give a folder that is not: --out FOLDER.", param="out")


def execute(
    run: TrainingRun, folder: Path, on_step: StepListener, keeping: Checkpointing | None = None, *, run_name: str = ""
) -> Card:
    """Train and leave the PEFT folder at ``folder``, whole or not at all. ``run_name`` is what trackers call it. Raises
    what ``trainer.train`` raises."""
    check_free(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial-{secrets.token_hex(4)}")
    partial.mkdir()
    try:
        from graftwork.training.run import trainer

        metrics = trainer.train(
            run.base,
            run.rows,
            run.validation,
            run.config,
            partial,
            on_step,
            parent=run.parent.folder if run.parent else None,
            teacher=run.teacher,
            replay_validation=run.replay_validation,
            keeping=keeping,
            run_name=run_name or run.name,
        )
        card = card_of(run, metrics, datetime.now(UTC))
        seal(partial, card)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return card


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
