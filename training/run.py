"""One run from a file to a finished PEFT folder: plan it, look at the plan, carry it out.

A plan is cheap and loads no weights: everything that can be wrong with the data or the settings is found there. Knows
nothing of terminals or of the server: that is the command line's.
"""

from __future__ import annotations

import dataclasses
import secrets
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.errors import ConfigurationError, InvalidRequest
from graftwork.adapters.names import check_name
from graftwork.adapters.prompts import Prompts
from graftwork.training.config import SFTConfig
from graftwork.training.dataset import BadRow, Columns, Tokens, nothing_usable, read, tokenize
from graftwork.training.progress import Listener
from graftwork.training.publish import Card, seal


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that can begin: rows read, checked, split and turned into token ids."""

    name: str
    base: BaseInfo
    config: SFTConfig
    data: str
    data_digest: str
    rows: tuple[Tokens, ...]
    validation: tuple[Tokens, ...]
    bad: tuple[BadRow, ...]
    num_cut: int
    """Rows that lost the end of their answer to ``max_length``."""


def plan(*, name: str, data: Path, columns: Columns, base: BaseInfo, config: SFTConfig) -> Run:
    """Read and check everything a run needs; ``max_length`` becomes what the base can read, if that is less. Raises
    InvalidRequest when there is nothing to learn, or the name cannot be an adapter's."""
    check_name(name, base_id=base.id)
    config = dataclasses.replace(config, max_length=min(config.max_length, base.max_positions))
    found = read(data, columns)
    prompts = Prompts(Path(base.path))
    train, held = found.split(config.validation)
    eos_token_id = base.eos_token_ids[0] if base.eos_token_ids else None
    rows, validation = (
        tokenize(part, prompts, max_length=config.max_length, eos_token_id=eos_token_id) for part in (train, held)
    )
    bad = sorted((*found.bad, *rows.bad, *validation.bad), key=lambda row: row.line)
    if not rows.sequences:
        if validation.sequences:
            raise InvalidRequest(
                f"All {len(validation.sequences)} usable rows of {data.name} fell to validation. Add rows, or train on "
                "all of them with --validation 0.",
                param="data",
            )
        raise nothing_usable(data.name, bad)
    return Run(
        name=name,
        base=base,
        config=config,
        data=data.name,
        data_digest=found.digest,
        rows=rows.sequences,
        validation=validation.sequences,
        bad=tuple(bad),
        num_cut=rows.num_cut + validation.num_cut,
    )


def check_free(folder: Path) -> None:
    """ConfigurationError unless ``folder`` is free for a run's result: nothing that is there is ever overwritten."""
    if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        raise ConfigurationError(f"{folder} is there already. Give a folder that is not: --out FOLDER.", param="out")


def carry_out(run: Run, folder: Path, on_step: Listener) -> Card:
    """Train and leave the PEFT folder at ``folder``, whole or not at all. Raises what ``trainer.train`` raises."""
    check_free(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial-{secrets.token_hex(4)}")
    partial.mkdir()
    try:
        from graftwork.training import trainer

        metrics = trainer.train(run.base, run.rows, run.validation, run.config, partial, on_step)
        card = Card(
            name=run.name,
            base_id=run.base.id,
            base_digest=run.base.digest,
            parent=None,
            data=run.data,
            data_digest=run.data_digest,
            num_rows=len(run.rows),
            num_validation_rows=len(run.validation),
            num_bad_rows=len(run.bad),
            config=run.config,
            metrics=metrics,
            trained_at=datetime.now(UTC),
        )
        seal(partial, card)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return card
