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
from graftwork.adapters.learning.graders.reading import read_grader
from graftwork.adapters.learning.job import CONTROL_KEY
from graftwork.adapters.learning.knobs import ALIASES, KNOBS
from graftwork.adapters.learning.methods import TRAINING_METHODS
from graftwork.adapters.storage.durable import write_durably
from graftwork.training.config import TrainConfig
from graftwork.training.data.kept import KeptRows
from graftwork.training.data.read.columns import Columns
from graftwork.training.data.row import SplitName
from graftwork.training.data.splits import Shares
from graftwork.training.data.store import DataStore
from graftwork.training.methods.grading.grading import runs_programs
from graftwork.training.methods.rows import choose_method, count_signals, method_named
from graftwork.training.run.folder import (
    ANSWERS_FILE,
    BEGAN_FILE,
    FEEDBACK_FILE,
    SIDES_FILE,
    WORDINGS_FILE,
)
from graftwork.training.run.material import Material, merge, read_data_set, read_files
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
    is_control, continues = CONTROL_KEY in spec.metadata, spec.parent is not None and spec.parent_folder is not None
    rounds = list(earlier_rounds(folder, spec)) if continues or is_control else []
    sides = read_sides(folder)
    for round_ in rounds:
        # Of rounds before there was a ledger.
        sides = {**_question_sides(round_), **sides}
    if is_control:
        spec, rounds = with_all_rounds(folder, spec), []
    material = job_material(spec, earlier=sides)
    write_sides(folder, {**material.question_sides(), **sides})
    older = dict(_older_material(rounds, spec, sides))
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
    _check_graders(config, spec)
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
        is_judged=True,
        before=learned_before(rounds, spec.ancestors, method),
        turn=len(rounds),
        began=began,
        reason=reason,
        writer=writer,
    )
    if material.kept is not None:
        RoundRecord(method=method, rows=material.kept).write(folder)
    return run


def _check_graders(config: TrainConfig, spec: JobSpec) -> None:
    """Check that graders run no programs where the operator does not allow it any more.

    Raises:
        ConfigurationError: if one does.
    """
    for field in ("grader", "judge"):
        wire = getattr(config, field)
        if wire is not None and runs_programs(read_grader(dict(wire), field)) and not spec.allow_python_graders:
            raise ConfigurationError(
                "Graders of the type python are programs, which this server does not run: it would have to be started "
                "with --allow-python-graders.",
                param=field,
                code="python_graders_not_allowed",
            )


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


FINAL_SHARE: Final = 0.2
"""Share of the held-out rows of files that is kept for the final reading."""


def job_material(
    spec: JobSpec, *, earlier: Mapping[int, SplitName] | None = None, kept: KeptRows | None = None
) -> Material:
    """Read the rows of a job, from its files and stored data sets.

    Args:
        spec: the specification of the job.
        earlier: the split of each question in earlier rounds; see `graftwork.training.data.pipeline.prepare`.
        kept: what the run recorded of its rows, if it was planned before.

    Raises:
        InvalidRequest: if a file cannot be read, or there is no usable row.
        GraftworkError: if a data set was changed on disk.
    """
    given = parse_hyperparameters(spec.hyperparameters)
    held_out = given.get("validation", TrainConfig().validation)
    folders = [path for path in spec.data if path.is_dir()]
    files = [path for path in spec.data if path not in folders]
    found = []
    if files:
        of_files = read_files(
            files,
            spec.validation,
            columns=Columns(graded=spec.is_graded),
            shares=Shares(validation=held_out * (1 - FINAL_SHARE), test=held_out * FINAL_SHARE),
            earlier=earlier,
            kept=kept,
            clean_system=given.get("personal_in_system") == "mask",
        )
        found.append(of_files)
    for folder in folders:
        data_set = DataStore(folder.parent.parent).get(f"{folder.parent.name}@{folder.name}")
        found.append(read_data_set(data_set, earlier=earlier))
    return merge(found)


def read_sides(folder: Path) -> dict[int, SplitName]:
    """Return the split of each question of earlier rounds, by `Row.question_key`, as the worker wrote it down."""
    path = folder / SIDES_FILE
    if not path.exists():
        return {}
    return {int(key, 16): side for key, side in json.loads(path.read_bytes()).items()}


def write_sides(folder: Path, sides: Mapping[int, SplitName]) -> None:
    """Write down the split of each question, for the ledger. A run that is started again finds the same ones."""
    write_durably(folder / SIDES_FILE, json.dumps({f"{key:016x}": side for key, side in sides.items()}))


def _older_material(
    rounds: Iterable[Round], spec: JobSpec, sides: Mapping[int, SplitName]
) -> Iterator[tuple[str, Material]]:
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
            yield round_.spec.job_id, material.where(sides)


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


def _question_sides(round_: Round) -> dict[int, SplitName]:
    """Return the split that an earlier round had each question in, by `Row.question_key`."""
    if round_.record is not None:
        return {row.question: side for side, rows in round_.record.rows.sides.items() for row in rows}
    material = _read_again(round_)
    return {} if material is None else material.question_sides()


def _is_feedback(spec: JobSpec) -> bool:
    return any(file.name == FEEDBACK_FILE for file in spec.data)


def with_all_rounds(folder: Path, spec: JobSpec) -> JobSpec:
    """Return the specification with the data of all earlier rounds, for a control run. Of feedback files only the
    newest is used, which contains the earlier ones."""
    rounds = [*(round_.spec for round_ in earlier_rounds(folder, spec)), spec]
    data = {file: None for earlier in rounds for file in earlier.data}
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
