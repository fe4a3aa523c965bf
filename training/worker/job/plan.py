"""Planning of a job's run from its specification: hyperparameters, data, earlier rounds, parent and teacher."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from graftwork.training.data.row import SplitName
from graftwork.training.data.store import DataStore
from graftwork.training.methods.rows import choose_method, count_signals, method_named
from graftwork.training.run.folder import (
    ANSWERS_FILE,
    FEEDBACK_FILE,
    RESULT_FILE,
    SPEC_FILE,
    WORDINGS_FILE,
)
from graftwork.training.run.material import Material, read_data_set, read_files
from graftwork.training.run.plan import ParentVersion, TrainingRun, assemble_run, default_writer
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
    older = dict(older_rounds(folder, spec)) if spec.parent is not None and spec.parent_folder is not None else {}
    # Each round has the feedback of earlier rounds, too: rows that were trained on must not be held out now.
    learned = [row for round_ in older.values() for row in round_.sides["train"]] if _is_feedback(spec) else []
    material = job_material(spec, earlier={row.question_key(): "train" for row in learned})
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
    writer = partial(default_writer, kept=folder / WORDINGS_FILE, on_progress=_wording_progress(say))
    return assemble_run(
        spec.name,
        material,
        base=spec.base,
        config=config,
        parent=parent,
        teacher=teacher,
        older=older,
        reason=reason,
        writer=writer,
    )


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


def job_material(spec: JobSpec, *, earlier: Mapping[int, SplitName] | None = None) -> Material:
    """Read the rows of a job, from its files or its stored data set.

    Args:
        spec: the specification of the job.
        earlier: the split of each question in earlier rounds; see `graftwork.training.data.pipeline.prepare`.

    Raises:
        InvalidRequest: if a file cannot be read, or there is no usable row.
        GraftworkError: if the data set was changed on disk.
    """
    if len(spec.data) == 1 and spec.data[0].is_dir():
        folder = spec.data[0]
        return read_data_set(DataStore(folder.parent.parent).get(f"{folder.parent.name}@{folder.name}"))
    share = parse_hyperparameters(spec.hyperparameters).get("validation", TrainConfig().validation)
    fewest = FEWEST_HELD_OUT if _may_hold_out_more(spec) else 0
    return read_files(spec.data, spec.validation, share=share, fewest=fewest, earlier=earlier)


def _is_feedback(spec: JobSpec) -> bool:
    return any(file.name == FEEDBACK_FILE for file in spec.data)


def _may_hold_out_more(spec: JobSpec) -> bool:
    """Whether a run may hold out more than the default share: if it learns from feedback and no share was set."""
    return _is_feedback(spec) and "validation" not in parse_hyperparameters(spec.hyperparameters)


def older_rounds(folder: Path, spec: JobSpec) -> Iterator[tuple[str, Material]]:
    """Yield the job id and the rows of each earlier successful run of the same adapter, the oldest first.

    Their data is read again, so that erased rows are not replayed. Runs whose data was deleted are left out.

    Args:
        folder: the folder of this run; those of earlier runs are beside it.
        spec: the specification of this run.
    """
    for earlier in _earlier(folder, spec):
        try:
            yield earlier.job_id, job_material(earlier)
        except InvalidRequest as error:
            if error.code != "no_usable_rows":  # all its rows may have been erased
                raise


def with_all_rounds(folder: Path, spec: JobSpec) -> JobSpec:
    """Return the specification with the data of all earlier rounds, for a control run. Of feedback files only the
    newest is used, which contains the earlier ones."""
    rounds = [*_earlier(folder, spec), spec]
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


def _earlier(folder: Path, spec: JobSpec) -> Iterator[JobSpec]:
    """Yield the successful runs of the same adapter whose data still exists, the oldest first."""
    beside = [path for path in folder.parent.iterdir() if path != folder and (path / RESULT_FILE).is_file()]
    for path in sorted(beside, key=lambda path: (path / RESULT_FILE).stat().st_mtime_ns):
        if not (path / SPEC_FILE).is_file():
            continue
        earlier = JobSpec.read(path)
        succeeded = json.loads((path / RESULT_FILE).read_text(encoding="utf-8"))["status"] == "succeeded"
        wanted = earlier.name in {spec.name, spec.parent_name} and earlier.data != spec.data
        if succeeded and wanted and all(file.exists() for file in (*earlier.data, *earlier.validation)):
            yield earlier


def parent_id(run: TrainingRun) -> str:
    """Return the id of the version that a run continues, or words for people if there is none."""
    return "no version, from the base" if run.parent is None else f"{run.parent.name}@{run.parent.version}"
