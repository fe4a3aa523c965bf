"""Planning of a job's run from its specification: hyperparameters, data, earlier rounds, parent and teacher."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from graftwork.adapters.base import prepare
from graftwork.adapters.errors import ConfigurationError, InvalidRequest
from graftwork.adapters.learning.job import CONTROL_KEY
from graftwork.adapters.learning.knobs import ALIASES, KNOBS
from graftwork.adapters.learning.methods import TRAINING_METHODS
from graftwork.adapters.storage.durable import write_durably
from graftwork.training.config import TrainConfig
from graftwork.training.data.kept import KeptRows
from graftwork.training.data.row import SplitName
from graftwork.training.data.store import DataStore
from graftwork.training.methods.rows import choose_method, count_signals, method_named
from graftwork.training.run.folder import (
    ANSWERS_FILE,
    BEGAN_FILE,
    FEEDBACK_FILE,
    WORDINGS_FILE,
)
from graftwork.training.run.material import Material, read_data_set, read_files
from graftwork.training.run.plan import ParentVersion, TrainingRun, assemble_run, default_writer
from graftwork.training.worker.job.rounds import Round, RoundRecord, earlier_rounds, learned_before
from graftwork.training.worker.job.spec import AUTO, JobSpec

UNSUPPORTED_METHODS: Final[Mapping[str, str]] = {
    "prompt_tuning": "prompt tuning, which serving does not know",
    "prefix_tuning": "prefix tuning, which serving does not know",
    "full": "full fine-tuning, whose result cannot be swapped while serving: graftwork train --local --full exports it",
}


def plan_job(spec: JobSpec, folder: Path, say: Any = lambda message: None) -> TrainingRun:
    """Plan the run of a job.

    Args:
        spec: the specification of the job.
        folder: the folder of the run. Earlier rounds are found in the folders beside it.
        say: called with messages for people.

    Raises:
        ConfigurationError: if the method or a hyperparameter is not supported.
        InvalidRequest: if there is nothing to learn.
    """
    if spec.method in UNSUPPORTED_METHODS:
        raise ConfigurationError(
            f"This version does not do {UNSUPPORTED_METHODS[spec.method]}. It does {', '.join(TRAINING_METHODS)}, "
            "and auto.",
            param="method",
        )
    given = parse_hyperparameters(spec.hyperparameters)
    if CONTROL_KEY in spec.metadata:
        spec = with_all_rounds(folder, spec)
    continues = spec.parent is not None and spec.parent_folder is not None
    rounds = list(earlier_rounds(folder, spec)) if continues else []
    # Each round has the feedback of earlier rounds, too: rows that were trained on must not be held out now.
    trained = {key for round_ in rounds for key in _trained_questions(round_)} if _is_feedback(spec) else set()
    material = job_material(spec, earlier=dict.fromkeys(trained, "train"))
    older = dict(_older_material(rounds, spec))
    if _may_hold_out_more(spec) and material.report.shares["validation"] > TrainConfig().validation:
        say(
            f"{len(material.held_out):,} of {material.num_rows:,} rows are held out, more than the usual "
            f"{TrainConfig().validation:.0%}: with fewer, the gates could not say anything."
        )
    if spec.method == AUTO:
        choice = choose_method(count_signals(row for rows in material.sides.values() for row in rows))
        method, reason = choice.method, choice.reason
    else:
        method, reason = method_named(spec.method), ""
    parent = None
    if spec.parent is not None and spec.parent_folder is not None:
        parent = ParentVersion(name=spec.parent_name or spec.name, version=spec.parent, folder=spec.parent_folder)
    teacher = None
    if isinstance(given.get("teacher"), str):
        teacher = prepare(given["teacher"], folder.parent.parent, lambda title, fraction: None)
        given["teacher"] = teacher.id
    multiplier = given.pop("learning_rate_multiplier", 1.0)
    try:
        config = TrainConfig.start(
            method,
            continuing=parent is not None,
            num_rows=len(material.sides["train"]),
            **{"seed": spec.seed, **given},
        )
        config = dataclasses.replace(config, learning_rate=config.learning_rate * multiplier)
    except TypeError as error:  # for example a string in place of a number
        raise ConfigurationError(f"A hyperparameter is of the wrong kind: {error}.", param="hyperparameters") from error
    if config.variant == "full":
        raise ConfigurationError(f"Jobs do not do {UNSUPPORTED_METHODS['full']}.", param="variant")
    _record_answers(folder, (material, *older.values()))
    began = _began(folder)
    writer = partial(default_writer, kept=folder / WORDINGS_FILE, began=began, on_progress=_wording_progress(say))
    run = assemble_run(
        spec.name,
        material,
        base=spec.base,
        config=config,
        parent=parent,
        teacher=teacher,
        older=older,
        before=learned_before(rounds, spec.ancestors, method),
        turn=len(rounds),
        began=began,
        reason=reason,
        writer=writer,
    )
    if material.kept is not None:
        RoundRecord(method=method, rows=material.kept).write(folder)
    return run


def _began(folder: Path) -> datetime:
    """Return when the run first began; recorded, since a chat template may write the date into every prompt."""
    path = folder / BEGAN_FILE
    if not path.exists():
        write_durably(path, json.dumps({"at": datetime.now().isoformat()}))
    return datetime.fromisoformat(json.loads(path.read_bytes())["at"])


def _wording_progress(say: Callable[[str], None]) -> Callable[[int, int], None]:
    """Return a callback that reports the progress of paraphrasing, at most ten times."""
    last = -1

    def report(written: int, of: int) -> None:
        nonlocal last
        if (tenth := 10 * written // of) > last:
            last = tenth
            say(f"Writing other wordings: {written:,} of {of:,}.")

    return report


def compared_version(spec: JobSpec, run: TrainingRun) -> str | None:
    """Return the id of the version that a candidate is compared with: its parent, or for a control run the version that
    it is a control for; None for the base."""
    return spec.metadata.get(CONTROL_KEY) if run.parent is None else parent_id(run)


def parse_hyperparameters(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Map hyperparameters of a job to fields of TrainConfig and ``learning_rate_multiplier``; ``"auto"`` is left out.

    Raises:
        ConfigurationError: if there is no such hyperparameter.
    """
    found: dict[str, Any] = {}
    for name, value in hyperparameters.items():
        field = ALIASES.get(name, name)
        if field not in KNOBS:
            raise ConfigurationError(
                f"{name!r} is no hyperparameter. There are {', '.join(sorted(KNOBS))}.", param=f"hyperparameters.{name}"
            )
        if value != AUTO:
            found[field] = tuple(value) if isinstance(value, list) else value
    return found


FEWEST_HELD_OUT: Final = 25
"""Minimum number of held-out rows with a right answer, for feedback: more than the gates require, since some may be too
long for the server."""


def job_material(
    spec: JobSpec, *, earlier: Mapping[int, SplitName] | None = None, kept: KeptRows | None = None
) -> Material:
    """Read the rows of a job, from its files or its stored data set.

    Args:
        spec: the specification of the job.
        earlier: the split of each question in earlier rounds; see `graftwork.training.data.pipeline.prepare`.
        kept: what the run recorded of its rows, if it was planned before.

    Raises:
        InvalidRequest: if a file cannot be read, or there is no usable row.
        GraftworkError: if the data set was changed on disk.
    """
    if len(spec.data) == 1 and spec.data[0].is_dir():
        folder = spec.data[0]
        return read_data_set(DataStore(folder.parent.parent).get(f"{folder.parent.name}@{folder.name}"))
    given = parse_hyperparameters(spec.hyperparameters)
    share = given.get("validation", TrainConfig().validation)
    fewest = FEWEST_HELD_OUT if _may_hold_out_more(spec) else 0
    return read_files(
        spec.data,
        spec.validation,
        share=share,
        fewest=fewest,
        earlier=earlier,
        kept=kept,
        clean_system=given.get("personal_in_system") == "mask",
    )


def _is_feedback(spec: JobSpec) -> bool:
    return any(file.name == FEEDBACK_FILE for file in spec.data)


def _may_hold_out_more(spec: JobSpec) -> bool:
    """Whether a run may hold out more than the default share: if it learns from feedback and no share was set."""
    return _is_feedback(spec) and "validation" not in parse_hyperparameters(spec.hyperparameters)


def _older_material(rounds: Iterable[Round], spec: JobSpec) -> Iterator[tuple[str, Material]]:
    """Yield the job id and the rows of each earlier round, the oldest first.

    Their data is read again, so that erased rows are not replayed, and only once where several rounds had the same. The
    newest feedback contains the earlier ones; so does that of this run, if it has any.
    """
    newest: dict[Hashable, Round] = {}
    for round_ in rounds:
        key = _data_of(round_.spec)
        newest.pop(key, None)
        newest[key] = round_
    if _is_feedback(spec):
        newest.pop(_data_of(spec), None)
    for round_ in newest.values():
        if (material := _read_again(round_)) is not None:
            yield round_.spec.job_id, material


def _data_of(spec: JobSpec) -> Hashable:
    """What a round learned from: files, or the feedback on an adapter's answers."""
    return spec.name if _is_feedback(spec) else (spec.data, spec.validation)


def _read_again(round_: Round) -> Material | None:
    """Return the rows of an earlier round; None if there are none left."""
    try:
        return job_material(round_.spec, kept=None if round_.record is None else round_.record.rows)
    except InvalidRequest as error:
        if error.code != "no_usable_rows":  # all its rows may have been erased
            raise
        return None


def _trained_questions(round_: Round) -> Iterator[int]:
    """Yield the questions that an earlier round was trained on, by `Row.question_key`."""
    if round_.record is not None:
        yield from (row.question for row in round_.record.rows.sides["train"])
    elif (material := _read_again(round_)) is not None:
        yield from (row.question_key() for row in material.sides["train"])


def with_all_rounds(folder: Path, spec: JobSpec) -> JobSpec:
    """Return the specification with the data of all earlier rounds, for a control run. Of feedback files only the
    newest is used, which contains the earlier ones."""
    rounds = [*(round_.spec for round_ in earlier_rounds(folder, spec)), spec]
    data = {file: None for earlier in rounds for file in earlier.data if file.is_file()}
    older_feedback = {file for file in data if file.name == FEEDBACK_FILE and file not in spec.data}
    return dataclasses.replace(
        spec,
        data=tuple(file for file in data if file not in older_feedback),
        validation=tuple({file: None for earlier in rounds for file in earlier.validation}),
    )


def _record_answers(folder: Path, rounds: Iterable[Material]) -> None:
    """Record which logged interactions the run may learn from, including replayed ones, so that an erasure of a user
    finds this version."""
    path = folder / ANSWERS_FILE
    known = set(json.loads(path.read_bytes())) if path.exists() else set()
    found = {id for round_ in rounds for rows in round_.sides.values() for row in rows for id in row.interactions}
    if found - known:
        write_durably(path, json.dumps(sorted(found | known)))


def parent_id(run: TrainingRun) -> str:
    """Return the id of the version that a run continues, or words for people if there is none."""
    return "no version, from the base" if run.parent is None else f"{run.parent.name}@{run.parent.version}"
