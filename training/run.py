"""One run from a file to a finished PEFT folder: plan it, look at the plan, carry it out.

A plan is cheap and loads no weights: everything that can be wrong with the data or the settings is found there. Knows
nothing of terminals or of the server: that is the command line's.
"""

from __future__ import annotations

import dataclasses
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.errors import ConfigurationError, InvalidRequest
from graftwork.adapters.names import check_name
from graftwork.adapters.prompts import Prompts
from graftwork.training.config import TrainConfig
from graftwork.training.data import words
from graftwork.training.data.columns import Columns
from graftwork.training.data.pipeline import nothing_usable, prepare
from graftwork.training.data.policy import Policy
from graftwork.training.data.report import Report
from graftwork.training.data.row import BadRow, Row, Side
from graftwork.training.data.source import file_source
from graftwork.training.data.splits import Shares
from graftwork.training.data.store import Stored
from graftwork.training.data.tokens import Tokens, tokenize
from graftwork.training.progress import Listener
from graftwork.training.publish import Card, seal
from graftwork.training.routing import route


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that can begin: rows read, checked, split and turned into token ids."""

    name: str
    base: BaseInfo
    config: TrainConfig
    data: str
    data_digest: str
    rows: tuple[Tokens, ...]
    validation: tuple[Tokens, ...]
    bad: tuple[BadRow, ...]
    """Rows that cannot be used, the first ones."""

    num_bad: int
    num_cut: int
    """Rows that lost the end of their answer to ``max_length``."""

    remarks: tuple[str, ...] = ()
    """What was done to the data, for people."""


def plan(
    *,
    name: str,
    data: Path | Stored,
    columns: Columns | None = None,
    format: str | None = None,
    base: BaseInfo,
    config: TrainConfig,
) -> Run:
    """Read and check everything a run needs; ``max_length`` becomes what the base can read, if that is less.

    ``data`` is a file, cleaned by the default policy and split by ``config.validation``, or a data set that was kept,
    with the sides it has. Raises InvalidRequest when there is nothing to learn, or the name cannot be an adapter's.
    """
    check_name(name, base_id=base.id)
    config = dataclasses.replace(config, max_length=min(config.max_length, base.max_positions))
    label = data.id if isinstance(data, Stored) else data.name
    sides, report, bad = _stored(data) if isinstance(data, Stored) else _read(data, columns, format, config)
    prompts = Prompts(Path(base.path))
    eos_token_id = base.eos_token_ids[0] if base.eos_token_ids else None
    routed = {side: route(rows, "sft") for side, rows in sides.items()}
    rows, validation = (
        tokenize(routed[side].rows, prompts, max_length=config.max_length, eos_token_id=eos_token_id)
        for side in ("train", "validation")
    )
    bad = (*bad, *rows.bad, *validation.bad)
    if not rows.sequences:
        if validation.sequences:
            raise InvalidRequest(
                f"All {len(validation.sequences)} usable rows of {label} fell to validation. Add rows, or train on "
                "all of them with --validation 0.",
                param="data",
            )
        raise nothing_usable(label, bad)
    unused = sum(sum(part.unused.values()) for part in routed.values())
    return Run(
        name=name,
        base=base,
        config=config,
        data=label,
        data_digest=report.digest,
        rows=rows.sequences,
        validation=validation.sequences,
        bad=tuple(sorted(bad, key=lambda row: row.line)),
        num_bad=report.fates.get("bad", 0) + len(rows.bad) + len(validation.bad),
        num_cut=rows.num_cut + validation.num_cut,
        remarks=tuple(_remarks(report, unused)),
    )


Sides = dict[Side, list[Row]]


def _read(
    data: Path, columns: Columns | None, format: str | None, config: TrainConfig
) -> tuple[Sides, Report, tuple[BadRow, ...]]:
    policy = Policy(shares=Shares(validation=config.validation, test=0.0))
    with prepare([file_source(data, columns, format=format)], policy) as prepared:
        sides: Sides = {side: list(prepared.rows(side)) for side in ("train", "validation")}
        return sides, prepared.report, prepared.bad


def _stored(data: Stored) -> tuple[Sides, Report, tuple[BadRow, ...]]:
    data.verify()
    sides: Sides = {side: list(data.rows(side)) for side in ("train", "validation")}
    # What was wrong with its sources was said when it was made.
    report = dataclasses.replace(data.report, fates={"kept": sum(data.num_rows.values())}, found=(), repaired=0)
    return sides, report, ()


def _remarks(report: Report, unused: int) -> Iterator[str]:
    left_out = [f"{number:,} {noun}" for fate, noun, number in words.fates(report) if fate not in ("kept", "bad")]
    if left_out:
        yield f"Left out: {', '.join(left_out)} (graftwork data check shows which)."
    masked = [f"{found.findings:,} × {found.kind}" for found in report.found if found.action == "mask"]
    if masked:
        yield f"Masked: {', '.join(masked)} (graftwork data check --save keeps a data set with other wishes)."
    if unused:
        yield f"{words.count(unused, 'row')} say what not to answer, which supervised training cannot use."


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
            num_bad_rows=run.num_bad,
            config=run.config,
            metrics=metrics,
            trained_at=datetime.now(UTC),
        )
        seal(partial, card)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return card
