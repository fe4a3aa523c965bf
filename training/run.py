"""One run from its data to a finished PEFT folder: plan it, look at the plan, carry it out.

A plan is cheap and loads no weights: everything that can be wrong with the data or the settings is found there. Knows
nothing of terminals or of the server: that is the command line's.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from graftwork.adapters import rewards, trackers
from graftwork.adapters.base import BaseInfo
from graftwork.adapters.errors import ConfigurationError, GraftworkError, InvalidRequest
from graftwork.adapters.names import check_name
from graftwork.adapters.prompts import Prompts
from graftwork.training.config import SUPERVISED, TrainConfig
from graftwork.training.data import words
from graftwork.training.data.balance import balanced
from graftwork.training.data.columns import Columns
from graftwork.training.data.paraphrases import Reworded, Wording, can_be_reworded
from graftwork.training.data.paraphrases import kept as kept_wordings
from graftwork.training.data.pipeline import nothing_usable, prepare
from graftwork.training.data.policy import Policy
from graftwork.training.data.replay import replay
from graftwork.training.data.report import Report
from graftwork.training.data.row import SIDES, BadRow, Row, Side
from graftwork.training.data.source import file_sources
from graftwork.training.data.splits import Shares
from graftwork.training.data.store import Stored
from graftwork.training.data.tokens import (
    Tokenized,
    TokenRow,
    tokenize,
    tokenize_judged,
    tokenize_pairs,
    tokenize_questions,
)
from graftwork.training.progress import Listener, Metrics, Trial
from graftwork.training.publish import Card, seal
from graftwork.training.routing import route

if TYPE_CHECKING:
    from graftwork.training.trainer import Keeping


@dataclass(frozen=True, kw_only=True)
class Parent:
    """The version that is continued."""

    name: str
    version: int
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Material:
    """Rows that were read, cleaned and split, and what became of the others."""

    label: str
    """What the data is called, for people."""
    sides: Mapping[Side, Sequence[Row]]
    report: Report
    bad: tuple[BadRow, ...]

    @property
    def held_out(self) -> tuple[Row, ...]:
        """What nothing is learned from."""
        return (*self.sides["validation"], *self.sides["test"])

    @property
    def num_rows(self) -> int:
        return sum(map(len, self.sides.values()))


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that can begin: rows read, checked, split and turned into token ids."""

    name: str
    base: BaseInfo
    config: TrainConfig
    data: str
    data_digest: str
    rows: tuple[TokenRow, ...]
    """Those of older rounds among them, as many as ``num_replayed``."""

    validation: tuple[TokenRow, ...]
    bad: tuple[BadRow, ...]
    """Rows that cannot be used, the first ones."""

    num_bad: int
    num_cut: int
    """Rows that lost the end of their answer to ``max_length``."""

    parent: Parent | None = None
    teacher: BaseInfo | None = None
    """Of a distillation."""

    num_augmented: int = 0
    """Of the rows, those that ask a question in other words."""

    num_replayed: int = 0
    replay_validation: tuple[TokenRow, ...] = ()
    """Held-out rows of older rounds."""

    held_out: tuple[Row, ...] = ()
    """What nothing is learned from, as it was read: to try the candidate on."""

    held_out_older: tuple[Row, ...] = ()
    """The same of older rounds."""

    reason: str = ""
    """Why this method, if it was chosen by itself."""

    remarks: tuple[str, ...] = ()
    """What was done to the data, for people."""


Writer = Callable[[BaseInfo, TrainConfig, Sequence[str]], Sequence[Sequence[Wording]]]
"""Other wordings of questions, ``augment`` of each."""


def written(
    base: BaseInfo,
    config: TrainConfig,
    questions: Sequence[str],
    *,
    kept: Path | None = None,
    on_progress: Callable[[int, int], None] = lambda written, of: None,
) -> Sequence[Sequence[Wording]]:
    """By the bare base; see `graftwork.training.augment.write`."""
    from graftwork.training import augment, trainer

    return augment.write(
        base,
        questions,
        each=config.augment,
        seed=config.seed,
        precision=trainer.precision_of(config),
        kept=kept,
        on_progress=on_progress,
    )


def plan(
    *,
    name: str,
    data: Path | Stored,
    columns: Columns | None = None,
    format: str | None = None,
    base: BaseInfo,
    config: TrainConfig,
    teacher: BaseInfo | None = None,
    writer: Writer = written,
) -> Run:
    """Read and check everything a run needs; ``max_length`` becomes what the base can read, if that is less.

    ``data`` is a file, cleaned by the default policy and split by ``config.validation``, or a data set that was kept,
    with the sides it has. Raises InvalidRequest when there is nothing to learn, or the name cannot be an adapter's.
    """
    check_name(name, base_id=base.id)
    found = material(data, columns=columns, format=format, share=config.validation)
    return assemble(name, found, base=base, config=config, teacher=teacher, writer=writer)


def material(data: Path | Stored, *, columns: Columns | None, format: str | None, share: float) -> Material:
    """The rows of a file, cleaned by the default policy and split by ``share``; or of a data set that was kept, with
    the sides it has."""
    return kept(data) if isinstance(data, Stored) else read([data], columns=columns, format=format, share=share)


def assemble(
    name: str,
    material: Material,
    *,
    base: BaseInfo,
    config: TrainConfig,
    parent: Parent | None = None,
    teacher: BaseInfo | None = None,
    older: Mapping[str, Material] | None = None,
    reason: str = "",
    writer: Writer = written,
) -> Run:
    """The run on this material, with rows of ``older`` rounds learned again as ``config.replay`` says, and other
    wordings of its questions by ``writer`` as ``config.augment`` says."""
    trackers.check(config.report_to)
    rewards.check(config.rewards)
    if teacher is not None:
        _check_same_words(base, teacher)
    config = dataclasses.replace(config, max_length=min(config.max_length, base.max_positions))
    prompts = Prompts(Path(base.path))
    eos_token_id = base.eos_token_ids[0] if base.eos_token_ids else None

    def tokens(rows: Iterable[Row]) -> Tokenized[Any]:
        how: Any = _TOKENIZE.get(config.method, tokenize)
        tokenized: Tokenized[Any] = how(rows, prompts, max_length=config.max_length, eos_token_id=eos_token_id)
        return tokenized

    routed = {side: route(material.sides[side], config.method) for side in ("train", "validation")}
    originals, other = routed["train"].rows, None
    fresh = originals
    if config.augment:
        other = _in_other_words(originals, material, older or {}, base, config, writer)
        fresh = (*originals, *other.rows)
    if config.method in SUPERVISED:
        fresh = tuple(balanced(fresh, config.balance))
    learned, augmented = tokens(fresh[: len(originals)]), tokens(fresh[len(originals) :])
    measured = tokens(routed["validation"].rows)
    bad = (*material.bad, *learned.bad, *measured.bad)
    if not learned.sequences:
        raise _nothing_to_learn(material, config, len(measured.sequences), bad)
    if config.method == "kto" and len({row.label for row in learned.sequences}) < 2:
        raise InvalidRequest(
            "KTO learns from what was liked beside what was disliked, and all rows are of one kind. Collect both, or "
            "choose sft for liked answers.",
            param="method",
        )
    replayed, forgettable = _older(material, older or {}, config, len(fresh))
    again, watched = tokens(replayed), tokens(forgettable)
    unused = sum(sum(part.unused.values()) for part in routed.values())
    return Run(
        name=name,
        base=base,
        config=config,
        data=material.label,
        data_digest=material.report.digest,
        rows=(*learned.sequences, *augmented.sequences, *again.sequences),
        validation=measured.sequences,
        bad=tuple(sorted(bad, key=lambda row: row.line)),
        num_bad=material.report.fates.get("bad", 0) + len(learned.bad) + len(measured.bad),
        num_cut=learned.num_cut + augmented.num_cut + measured.num_cut,
        parent=parent,
        teacher=teacher,
        num_augmented=len(augmented.sequences),
        num_replayed=len(again.sequences),
        replay_validation=watched.sequences,
        held_out=material.held_out,
        held_out_older=tuple(forgettable),
        reason=reason,
        remarks=(*_remarks(material.report, unused, config.method), *(other.said() if other else ())),
    )


_TOKENIZE: Final[Mapping[str, Any]] = {
    "dpo": tokenize_pairs,
    "kto": tokenize_judged,
    "distillation": tokenize_questions,
    "grpo": tokenize_questions,
}


def _check_same_words(base: BaseInfo, teacher: BaseInfo) -> None:
    """ConfigurationError unless the teacher's tokens are the base's, id by id: its probabilities are compared with the
    model's own, token by token."""
    vocabularies = [
        json.loads(Path(info.path, "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
        for info in (base, teacher)
    ]
    if base.vocab_size != teacher.vocab_size or vocabularies[0] != vocabularies[1]:
        raise ConfigurationError(
            f"{teacher.id} has other tokens than {base.id}, so that it cannot say how likely each of its is. Choose a "
            "larger model of the same family.",
            param="teacher",
        )


def _in_other_words(
    rows: Sequence[Row],
    material: Material,
    older: Mapping[str, Material],
    base: BaseInfo,
    config: TrainConfig,
    writer: Writer,
) -> Reworded:
    """Rows that ask in other words, of those that are learned from; none near to what this round or an older one holds
    out."""
    wordings = writer(base, config, [row.question for row in rows if can_be_reworded(row)])
    held_out = [*material.held_out, *(row for round_ in older.values() for row in round_.held_out)]
    return kept_wordings(rows, wordings, held_out=held_out)


REPLAY_MEASURED: Final = 200
"""Held-out rows of older rounds that are looked at after each epoch."""


def _older(
    material: Material, older: Mapping[str, Material], config: TrainConfig, num_new: int
) -> tuple[list[Row], list[Row]]:
    """Rows of older rounds to learn again, and held-out ones to watch; none that the new round has on its other side,
    nor asks about itself: what was said last is what holds."""
    asked = {row.question_key() for side in ("train", "validation", "test") for row in material.sides[side]}

    def rows(side: Side) -> dict[str, list[Row]]:
        return {
            name: [row for row in route(round_.sides[side], config.method).rows if row.question_key() not in asked]
            for name, round_ in older.items()
        }

    replayed = replay(rows("train"), num_new, share=config.replay, seed=config.seed)
    held_out = rows("validation")
    # As many as are to be looked at: a share of that many beside as many new ones.
    watched = replay(held_out, REPLAY_MEASURED, share=0.5, seed=config.seed)
    return replayed, watched


def _nothing_to_learn(
    material: Material, config: TrainConfig, num_measured: int, bad: Sequence[BadRow]
) -> GraftworkError:
    if num_measured:
        return InvalidRequest(
            f"All {num_measured} usable rows of {material.label} fell to validation. Add rows, or train on "
            "all of them with --validation 0.",
            param="data",
        )
    if not bad and any(material.sides.values()):
        return InvalidRequest(
            f"{material.label} has no row that {config.method} can learn from. Choose auto, or another method.",
            param="method",
            code="no_usable_rows",
        )
    return nothing_usable(material.label, bad)


def read(
    data: Sequence[Path],
    validation: Sequence[Path] = (),
    *,
    columns: Columns | None = None,
    format: str | None = None,
    share: float,
    fewest: int = 0,
    earlier: Mapping[int, Side] | None = None,
) -> Material:
    """Files, cleaned by the default policy. Held out are the rows of ``validation``, or ``share`` of all: more, but at
    most a half, until ``fewest`` of these say what is right. What is held out at a smaller share is so at a larger one.
    ``earlier``: on which side questions were before, as ``prepare`` takes it."""
    sources = file_sources(data, columns, format=format)
    for source in file_sources(validation, columns, format=format):
        sources.append(dataclasses.replace(source, split="validation"))

    def at(share: float) -> Material:
        policy = Policy(shares=Shares(validation=share, test=0.0))
        with prepare(sources, policy, earlier=earlier) as prepared:
            return Material(
                label=" + ".join(path.name for path in data),
                sides={side: tuple(prepared.rows(side)) for side in SIDES},
                report=prepared.report,
                bad=prepared.bad,
            )

    def too_few(found: Material) -> bool:
        return len(route(found.held_out, "sft").rows) < fewest and 2 * len(found.held_out) < found.num_rows

    found = at(0.0 if validation else share)
    if validation or not too_few(found):
        return found
    # Rows that are near each other stay together: only trying tells how many a share holds out.
    enough: Material | None = None
    low, high = share, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        tried = at(middle)
        if too_few(tried):
            low, found = middle, tried
        else:
            high = middle
            enough = tried if 2 * len(tried.held_out) <= tried.num_rows else enough
    return enough or found


_HALVINGS: Final = 8
"""They find a share to a row in two hundred."""


def kept(data: Stored) -> Material:
    """A data set that was kept, with the sides it has. What was wrong with its sources was said when it was made."""
    data.verify()
    report = dataclasses.replace(data.report, fates={"kept": sum(data.num_rows.values())}, found=(), repaired=0)
    return Material(label=data.id, sides={side: tuple(data.rows(side)) for side in SIDES}, report=report, bad=())


def _remarks(report: Report, unused: int, method: str) -> Iterator[str]:
    left_out = [f"{number:,} {noun}" for fate, noun, number in words.fates(report) if fate not in ("kept", "bad")]
    if left_out:
        yield f"Left out: {', '.join(left_out)} (graftwork data check shows which)."
    masked = [f"{found.findings:,} × {found.kind}" for found in report.found if found.action == "mask"]
    if masked:
        yield f"Masked: {', '.join(masked)} (graftwork data check --save keeps a data set with other wishes)."
    if unused:
        supervised = "say what not to answer, which supervised training cannot use"
        why = supervised if method == "sft" else f"say nothing that {method} learns from"
        yield f"{words.count(unused, 'row')} {why}."


def check_free(folder: Path) -> None:
    """ConfigurationError unless ``folder`` is free for a run's result: nothing that is there is ever overwritten."""
    if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        raise ConfigurationError(f"{folder} is there already. Give a folder that is not: --out FOLDER.", param="out")


def carry_out(run: Run, folder: Path, on_step: Listener, keeping: Keeping | None = None, *, run_name: str = "") -> Card:
    """Train and leave the PEFT folder at ``folder``, whole or not at all. ``run_name`` is what trackers call it. Raises
    what ``trainer.train`` raises."""
    check_free(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial-{secrets.token_hex(4)}")
    partial.mkdir()
    try:
        from graftwork.training import trainer

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


def card_of(run: Run, metrics: Metrics, trained_at: datetime, *, trials: tuple[Trial, ...] = ()) -> Card:
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
