"""Planning of a run: rows are selected for the method, weighted, tokenized and mixed with those of earlier rounds.

No weights are loaded (except for paraphrases), so that errors in data and settings are found before training begins.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.errors import ConfigurationError, GraftworkError, InvalidRequest
from graftwork.adapters.learning import trackers
from graftwork.adapters.learning.graders import reward_plugins
from graftwork.adapters.learning.methods import METHOD_TRAITS, SUPERVISED
from graftwork.adapters.names import check_name
from graftwork.adapters.prompts.prompts import Prompts
from graftwork.training.config import TrainConfig
from graftwork.training.data.bad_rows import no_usable_rows
from graftwork.training.data.mix.balance import balanced
from graftwork.training.data.mix.paraphrases import Augmentation, Wording, can_be_reworded
from graftwork.training.data.mix.paraphrases import accept_wordings as kept_wordings
from graftwork.training.data.mix.replay import sample_replay, sample_rows, split_learned
from graftwork.training.data.read.columns import Columns
from graftwork.training.data.report import words
from graftwork.training.data.report.numbers import DataReport
from graftwork.training.data.row import BadRow, Row, SplitName
from graftwork.training.data.splits import is_watched
from graftwork.training.data.store import StoredDataSet
from graftwork.training.data.tokens import TOKENIZE, Tokenized, TokenRow, has_special_tokens
from graftwork.training.methods.grading.grading import gradable_rows
from graftwork.training.methods.rows import is_reference, rows_for_method
from graftwork.training.run.material import Material, load_material


@dataclass(frozen=True, kw_only=True)
class ParentVersion:
    """The version that is trained further.

    Attributes:
        name: name of its adapter.
        version: its number.
        folder: its PEFT folder.
    """

    name: str
    version: int
    folder: Path


@dataclass(frozen=True, kw_only=True)
class LearnedBefore:
    """What the parent and the versions that it continues had of the same rows, by `Row.same_key`.

    Attributes:
        train: the rows that they were trained on by the method of the run.
        held_out: the rows that they held out.
    """

    train: frozenset[int] = frozenset()
    held_out: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """A run that is ready to begin: its rows are read, checked, split and tokenized."""

    name: str
    """Name of the adapter."""
    base: BaseInfo
    config: TrainConfig
    data: str
    """Name of the data, for people."""
    data_digest: str
    rows: tuple[TokenRow, ...]
    """The training rows, including augmented and replayed ones."""

    validation: tuple[TokenRow, ...]
    bad: tuple[BadRow, ...]
    """The first rows that cannot be used."""

    num_bad: int
    """Number of rows that cannot be used."""
    num_cut: int
    """Number of rows whose answer was truncated to ``max_length``."""

    parent: ParentVersion | None = None
    """The version that is trained further; None for a fresh adapter."""
    teacher: BaseInfo | None = None
    """The teacher of a distillation."""

    num_augmented: int = 0
    """Number of training rows that are paraphrases."""

    num_replayed: int = 0
    """Number of training rows from earlier rounds."""
    replay_validation: tuple[TokenRow, ...] = ()
    """Held-out rows of earlier rounds that the run watches, tokenized."""

    held_out: tuple[Row, ...] = ()
    """Validation rows, and references that earlier rounds held out, for the gates; none is watched by the run."""

    final: tuple[Row, ...] = ()
    """The same of the test side, for the final reading alone."""

    held_out_older: tuple[Row, ...] = ()
    """Held-out rows of earlier rounds, for the gates, too."""

    reason: str = ""
    """Why the method was chosen, if it was chosen automatically."""

    remarks: tuple[str, ...] = ()
    """What was done to the data, as sentences for people."""


WordingWriter = Callable[[BaseInfo, TrainConfig, Sequence[str]], Sequence[Sequence[Wording]]]
"""Generates ``config.augment`` paraphrases of each question."""


def default_writer(
    base: BaseInfo,
    config: TrainConfig,
    questions: Sequence[str],
    *,
    kept: Path | None = None,
    began: datetime | None = None,
    on_progress: Callable[[int, int], None] = lambda written, of: None,
) -> Sequence[Sequence[Wording]]:
    """Generate paraphrases with the base; see `graftwork.training.run.wordings.generate_wordings`."""
    from graftwork.training.model import precision
    from graftwork.training.run import wordings as augment

    return augment.generate_wordings(
        base,
        questions,
        each=config.augment,
        seed=config.seed,
        precision=precision.compute_precision(config),
        kept=kept,
        began=began,
        on_progress=on_progress,
    )


def plan_run(
    *,
    name: str,
    data: Path | StoredDataSet,
    columns: Columns | None = None,
    format: str | None = None,
    base: BaseInfo,
    config: TrainConfig,
    teacher: BaseInfo | None = None,
    writer: WordingWriter = default_writer,
) -> TrainingRun:
    """Read the data of a run, and plan the run on a fresh adapter.

    Args:
        name: the name of the adapter.
        data: a file, which is cleaned by the default policy and split by ``config.validation``; or a stored data set,
            which is used with its splits.
        columns: the columns of the file.
        format: the format of the file; detected if None.
        base: the base.
        config: the configuration. Its ``max_length`` is reduced to the context length of the base.
        teacher: the teacher of a distillation.
        writer: generates paraphrases, if ``config.augment`` is set.

    Raises:
        InvalidRequest: if the name is invalid, the data cannot be read, there is nothing to learn, or a tracker or
            reward function is not installed.
        ConfigurationError: if the teacher has another vocabulary.
    """
    check_name(name, base_id=base.id)
    clean_system = config.personal_in_system == "mask"
    found = load_material(data, columns=columns, format=format, share=config.validation, clean_system=clean_system)
    return assemble_run(name, found, base=base, config=config, teacher=teacher, writer=writer)


def assemble_run(
    name: str,
    material: Material,
    *,
    base: BaseInfo,
    config: TrainConfig,
    parent: ParentVersion | None = None,
    teacher: BaseInfo | None = None,
    older: Mapping[str, Material] | None = None,
    is_judged: bool = False,
    before: LearnedBefore = LearnedBefore(),
    turn: int = 0,
    began: datetime | None = None,
    reason: str = "",
    writer: WordingWriter = default_writer,
) -> TrainingRun:
    """Plan a run on rows that were read.

    Args:
        name: the name of the adapter.
        material: the rows.
        base: the base.
        config: the configuration. Its ``max_length`` is reduced to the context length of the base.
        parent: the version that is trained further.
        teacher: the teacher of a distillation.
        older: the rows of earlier rounds by name, of which ``config.replay`` are learned again.
        is_judged: whether gates will judge the result.
        before: which of the rows the parent learned already. Of many rows these are replayed like those of ``older``.
        turn: number of earlier rounds; each replays other rows.
        began: the time that a chat template sees which asks for the date; None is now. A run that is resumed must keep
            the one that it began with.
        reason: why the method was chosen automatically.
        writer: generates paraphrases, if ``config.augment`` is set.

    Raises:
        InvalidRequest: if there is nothing to learn, or a tracker or reward function is not installed.
        ConfigurationError: if the teacher has another vocabulary.
    """
    trackers.check(config.report_to)
    reward_plugins.check(config.rewards)
    if teacher is not None:
        _check_same_vocabulary(base, teacher)
    config = dataclasses.replace(config, max_length=min(config.max_length, base.max_positions))
    prompts = Prompts(Path(base.path), now=began)
    eos_token_id = base.eos_token_ids[0] if base.eos_token_ids else None

    def tokens(rows: Iterable[Row]) -> Tokenized[Any]:
        tokenize = TOKENIZE[METHOD_TRAITS[config.method].learns_from]
        return tokenize(rows, prompts, max_length=config.max_length, eos_token_id=eos_token_id)

    older = dict(older or {})
    material, ungradable = _gradable(material, config)
    now, known = _divide(material.sides["train"], before, config, turn)
    again_held_out = [row for row in material.sides["validation"] if row.same_key() in before.held_out]
    if known or again_held_out:
        older[_SAME_ROWS] = dataclasses.replace(
            material, sides={"train": known, "validation": again_held_out, "test": ()}
        )
    material = dataclasses.replace(material, sides={**material.sides, "train": now})
    routed = {side: rows_for_method(material.sides[side], config.method) for side in ("train", "validation")}
    originals, other = routed["train"].rows, None
    fresh = originals
    if config.augment:
        other = _augment(originals, material, older, base, config, writer)
        fresh = (*originals, *other.rows)
    if config.method in SUPERVISED:
        fresh = tuple(balanced(fresh, config.balance))
    learned, augmented = tokens(fresh[: len(originals)]), tokens(fresh[len(originals) :])
    # A search chooses by the loss on these rows, so they must not be those that the gates judge by.
    all_watched = not (is_judged and config.search)
    measured = tokens(row for row in routed["validation"].rows if all_watched or is_watched(row.question_key()))
    bad = (*material.bad, *ungradable, *learned.bad, *measured.bad)
    if not learned.sequences:
        raise _nothing_to_learn(material, config, len(measured.sequences), bad)
    if config.method == "kto" and len({row.label for row in learned.sequences}) < 2:
        raise InvalidRequest(
            "KTO learns from what was liked beside what was disliked, and all rows are of one kind. Collect both, or "
            "choose sft for liked answers.",
            param="method",
        )
    replayed, watched_rows, remembered = _older(material, older, config, len(fresh), turn)
    again, watched = tokens(replayed), tokens(watched_rows)
    num_special = sum(has_special_tokens(row, prompts) for row in (*fresh, *routed["validation"].rows))
    unused = sum(sum(part.unused.values()) for part in routed.values())
    return TrainingRun(
        name=name,
        base=base,
        config=config,
        data=material.label,
        data_digest=material.report.digest,
        rows=(*learned.sequences, *augmented.sequences, *again.sequences),
        validation=measured.sequences,
        bad=tuple(sorted(bad, key=lambda row: row.line)),
        num_bad=material.report.fates.get("bad", 0) + len(ungradable) + len(learned.bad) + len(measured.bad),
        num_cut=learned.num_cut + augmented.num_cut + measured.num_cut,
        parent=parent,
        teacher=teacher,
        num_augmented=len(augmented.sequences),
        num_replayed=len(again.sequences) + sum(row.same_key() in before.train for row in now),
        replay_validation=watched.sequences,
        held_out=tuple(_judged(material, older, "validation")),
        final=tuple(_judged(material, older, "test")),
        held_out_older=tuple(remembered),
        reason=reason,
        remarks=(*_remarks(material.report, unused, num_special, config.method), *(other.describe() if other else ())),
    )


def _gradable(material: Material, config: TrainConfig) -> tuple[Material, list[BadRow]]:
    """Return the rows without those that lack what the run's grader reads of them, and the latter."""
    if config.grader is None:
        return material, []
    divided = {side: gradable_rows(rows, config.grader) for side, rows in material.sides.items()}
    kept = dataclasses.replace(material, sides={side: tuple(good) for side, (good, _) in divided.items()})
    return kept, [row for _, bad in divided.values() for row in bad]


def _check_same_vocabulary(base: BaseInfo, teacher: BaseInfo) -> None:
    """Check that the teacher has the same token ids as the base, since their probabilities are compared by token.

    Raises:
        ConfigurationError: if it has not.
    """
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


def _augment(
    rows: Sequence[Row],
    material: Material,
    older: Mapping[str, Material],
    base: BaseInfo,
    config: TrainConfig,
    writer: WordingWriter,
) -> Augmentation:
    """Generate and filter paraphrases of the training rows; none is near to a held-out row of any round."""
    wordings = writer(base, config, [row.question for row in rows if can_be_reworded(row)])
    held_out = [*material.held_out, *(row for round_ in older.values() for row in round_.held_out)]
    return kept_wordings(rows, wordings, held_out=held_out)


LEARNED_AGAIN: Final = 1024
"""Number of rows up to which a round from feedback learns all feedback again. A few new rows alone are a few steps; but
with all of many rows each round would take longer than the one before."""

_SAME_ROWS: Final = "the same feedback"
"""The name, among earlier rounds, of the rows that a round has in common with the ones before."""


def _divide(
    rows: Sequence[Row], before: LearnedBefore, config: TrainConfig, turn: int
) -> tuple[Sequence[Row], Sequence[Row]]:
    """Divide training rows into those to learn now, and those that the parent learned already."""
    if not before.train:
        return rows, ()
    now, known = split_learned(rows, before.train, fewest=LEARNED_AGAIN, seed=config.seed, turn=turn)
    if config.method == "kto" and len({row.label for row in rows_for_method(now, "kto").rows}) < 2:
        return rows, ()  # it learns from a contrast
    return now, known


REPLAY_MEASURED: Final = 200
"""Maximum number of held-out rows of earlier rounds that are evaluated after each epoch."""


def _judged(material: Material, older: Mapping[str, Material], side: SplitName) -> Iterator[Row]:
    """Yield the rows of a held-out side, and references that earlier rounds had there, since a round of feedback has
    none of its own; none of them is watched by the run."""
    yield from (row for row in material.sides[side] if side == "test" or not is_watched(row.question_key()))
    asked = set(material.question_sides())
    for round_ in older.values():
        for row in round_.sides[side]:
            key = row.question_key()
            if is_reference(row) and key not in asked and (side == "test" or not is_watched(key)):
                asked.add(key)
                yield row


def _older(
    material: Material, older: Mapping[str, Material], config: TrainConfig, num_new: int, turn: int
) -> tuple[list[Row], list[Row], list[Row]]:
    """Sample rows of earlier rounds: to learn again, to watch, and for the gates. Questions of the new round are
    excluded: its answer replaces earlier ones. Rows that are held out again stay."""
    asked = material.question_sides()
    same = {row.same_key() for row in material.held_out}

    def rows(side: SplitName, wanted: Callable[[Row], bool]) -> dict[str, Sequence[Row]]:
        return {
            name: rows_for_method(filter(wanted, round_.sides[side]), config.method).rows
            for name, round_ in older.items()
        }

    def held_out(watched: bool) -> list[Row]:
        def is_wanted(row: Row) -> bool:
            key = row.question_key()
            return is_watched(key) == watched and (key not in asked or row.same_key() in same)

        # The same ones in every turn, so that rounds can be compared.
        return sample_rows(rows("validation", is_wanted), REPLAY_MEASURED, seed=config.seed)

    new = rows("train", lambda row: row.question_key() not in asked)
    replayed = sample_replay(new, num_new, share=config.replay, seed=config.seed, turn=turn)
    return replayed, held_out(watched=True), held_out(watched=False)


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
    return no_usable_rows(material.label, bad)


def _remarks(report: DataReport, unused: int, num_special: int, method: str) -> Iterator[str]:
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
    if report.personal_in_system:
        yield (
            f"{words.count(report.personal_in_system, 'row')} with personal data in the system message, which is kept "
            "(personal_in_system masks it)."
        )
    if num_special:
        yield (
            f"{words.count(num_special, 'row')} with a special token of the base written out in a message: learned as "
            "that token and not as text, as it is served."
        )
