"""One run as a process of its own: ``python -m graftwork.training.job FOLDER``.

Reads the folder's ``job.json``, learns, tells what happens in ``progress.jsonl`` and leaves ``adapter/`` and
``result.json``: `graftwork.training.jobspec` says what is in each. Ended by SIGTERM or by force, it goes on from its
newest whole checkpoint when it is started again, and ends in the same bits.

Knows nothing of queues and of the server.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from graftwork.adapters.base import prepare
from graftwork.adapters.durable import DISK_FULL, is_full, write_whole
from graftwork.adapters.errors import ConfigurationError, GraftworkError, InvalidRequest
from graftwork.adapters.jobs import CONTROL
from graftwork.adapters.names import check_name
from graftwork.training.config import TrainConfig
from graftwork.training.data.row import Side
from graftwork.training.data.store import DataStore
from graftwork.training.intake import ANSWERS_FILE, FEEDBACK_FILE
from graftwork.training.jobspec import (
    ADAPTER,
    AUTO,
    CHECKPOINTS,
    PARTS,
    PROGRESS,
    REPORT,
    RESULT,
    SPEC,
    TRIALS,
    WORDINGS,
    JobSpec,
    ProgressLine,
)
from graftwork.training.progress import Step
from graftwork.training.routing import METHODS, choose, count, named
from graftwork.training.run import Material, Parent, Run, assemble, carry_out, kept, read, written

TERMINATED: Final = 128 + signal.SIGTERM

NAMES: Final[Mapping[str, str]] = {"n_epochs": "epochs", "num_epochs": "epochs", "lora_rank": "rank"}
"""Other names that hyperparameters go by, and what they are called here."""

NOT_BUILT: Final[Mapping[str, str]] = {
    "prompt_tuning": "prompt tuning, which serving does not know",
    "prefix_tuning": "prefix tuning, which serving does not know",
    "full": "full fine-tuning, whose result cannot be swapped while serving: graftwork train --local --full exports it",
}


def main() -> int:
    """The process: 0 with a result that succeeded, 1 with one that failed, 143 when it was asked to end."""
    if len(sys.argv) != 2:
        print("usage: python -m graftwork.training.job FOLDER", file=sys.stderr)
        return 2
    return Job(Path(sys.argv[1])).run()


class Job:
    """The run in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._asked_to_end = threading.Event()
        self._stepping = False
        self._phase = "data"

    def run(self) -> int:
        """Learn, and leave a result. Only the main thread may call it: it takes SIGTERM."""
        signal.signal(signal.SIGTERM, self._on_sigterm)
        if (self._folder / RESULT).is_file():
            return 0 if json.loads((self._folder / RESULT).read_text(encoding="utf-8"))["status"] == "succeeded" else 1
        from graftwork.training.trainer import Stopped

        try:
            result = self._learn(JobSpec.read(self._folder))
        except Stopped:
            self._say("Asked to end: the newest checkpoint is whole.")
            return TERMINATED
        except GraftworkError as error:
            return self._fail(error.code or "failed", error.message, error.param)
        except OSError as error:
            if not is_full(error):
                traceback.print_exc()
                return self._fail("internal_error", f"{type(error).__name__}: {error}")
            return self._fail(DISK_FULL, "The disk is full: make room where jobs are kept, and submit the job again.")
        except Exception as error:  # whatever it is, somebody waits for a result
            traceback.print_exc()
            return self._fail("internal_error", f"{type(error).__name__}: {error}")
        self._write_result(result)
        for weights in (CHECKPOINTS, TRIALS):
            shutil.rmtree(self._folder / weights, ignore_errors=True)
        (self._folder / WORDINGS).unlink(missing_ok=True)
        return 0

    # --- the run ----------------------------------------------------------------------------------------------------

    def _learn(self, spec: JobSpec) -> dict[str, Any]:
        check_name(spec.name, base_id=spec.base.id)
        self._enter("data", "Reading the data.")
        run = planned(spec, self._folder, self._say)
        for remark in run.remarks:
            self._say(remark)
        from graftwork.training import trainer

        self._say(
            f"{run.config.method}: {len(run.rows):,} rows to learn from ({run.num_replayed:,} of older rounds), "
            f"{len(run.validation):,} held out, continuing {_parent(run)}. {run.reason}".strip()
        )
        run = self._fitting(run)
        self._say(str(trainer.estimated(run.base, run.rows, run.config)))
        adapter = self._folder / ADAPTER
        for leftover in (adapter, *self._folder.glob(f".{ADAPTER}.partial-*")):
            # Of an attempt that ended before it could say so: without a result nobody has seen it.
            shutil.rmtree(leftover, ignore_errors=True)
        self._enter("model", "Loading the base.")
        keeping = trainer.Keeping(
            folder=self._folder / CHECKPOINTS,
            on_checkpoint=lambda step: self._append({"checkpoint": step, "step": step}),
            should_stop=self._asked_to_end.is_set,
        )
        run_name = f"{spec.name} {spec.job_id}"
        if run.config.search:
            from graftwork.training.search import search

            card = search(run, adapter, self._on_step, keeping, place=self._folder, run_name=run_name, say=self._say)
        else:
            card = carry_out(run, adapter, self._on_step, keeping, run_name=run_name)
        judgement = self._judged(spec, run, adapter)
        return {
            "status": "succeeded",
            "adapter": str(adapter),
            "metrics": card.metrics.to_json(),
            "trained_tokens": card.metrics.num_tokens,
            "data_digest": card.data_digest,
            "card": {**card.to_json(), **judgement, **({"control": True} if CONTROL in spec.metadata else {})},
        }

    def _fitting(self, run: Run) -> Run:
        """The run in parts that memory has room for. Those that it began with stay: others end in other bits."""
        from graftwork.training import trainer

        path, wanted = self._folder / PARTS, run.config.micro_batch_tokens
        if not path.exists():
            write_whole(path, json.dumps({"micro_batch_tokens": trainer.fitting(run.base, run.rows, run.config)}))
        tokens = json.loads(path.read_bytes())["micro_batch_tokens"]
        if tokens < wanted:
            self._say(f"Memory is short: {tokens:,} tokens at a time instead of {wanted:,}.")
        return dataclasses.replace(run, config=dataclasses.replace(run.config, micro_batch_tokens=tokens))

    def _judged(self, spec: JobSpec, run: Run, adapter: Path) -> dict[str, Any]:
        """The candidate's trial at the server, for the card; empty without a server to ask."""
        if spec.server_url is None:
            return {}
        from graftwork.clients.client import Client
        from graftwork.training import judge, verdict_page

        self._enter("evaluate", f"Trying it on {len(run.held_out):,} held-out rows, beside what it would replace.")
        with Client(spec.server_url, os.environ.get(spec.key_variable)) as client:
            judgement = judge.judge(
                client,
                adapter,
                run.held_out,
                base=run.base,
                parent=rival(spec, run),
                replay=run.held_out_older,
                seed=spec.seed,
                job=spec.job_id,
            )
        self._phase = "gates"
        if judgement.evaluation is None or judgement.verdict is None:
            self._append({"message": f"Not judged: {judgement.why_not}.", "level": "warn"})
            return judgement.to_json()
        for gate in judgement.verdict.gates:
            self._append({"message": f"Gate {gate.name}: {gate.message}.", "level": "info" if gate.passed else "warn"})
        page = verdict_page.page(spec.name, judgement.evaluation, judgement.verdict)
        (self._folder / REPORT).write_text(page, encoding="utf-8")
        return judgement.to_json()

    def _on_step(self, step: Step) -> None:
        self._stepping = True
        self._phase = "train"
        self._append(
            {
                "step": step.step,
                "total": step.num_steps,
                "loss": step.loss,
                "learning_rate": step.learning_rate,
                "validation_loss": step.validation_loss,
                "num_tokens": step.num_tokens,
                **({"reward": step.reward} if step.reward is not None else {}),
                **({"validation_reward": step.validation_reward} if step.validation_reward is not None else {}),
                "eta_seconds": step.seconds_left,
                **({"trial": step.trial, "trials": step.trials} if step.trials else {}),
            }
        )

    def _on_sigterm(self, number: int, frame: Any) -> None:
        if not self._stepping or self._asked_to_end.is_set():
            # Nothing is under way that could be kept; or asked twice.
            os._exit(TERMINATED)
        self._asked_to_end.set()

    # --- what is told -----------------------------------------------------------------------------------------------

    def _enter(self, phase: str, message: str) -> None:
        self._phase = phase
        self._say(message)

    def _say(self, message: str) -> None:
        self._append({"message": message, "level": "info"})

    def _append(self, line: ProgressLine) -> None:
        text = json.dumps({"phase": self._phase, **line}, ensure_ascii=False)
        with (self._folder / PROGRESS).open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")

    def _fail(self, code: str, message: str, param: str | None = None) -> int:
        self._write_result({"status": "failed", "error": {"code": code, "message": message, "param": param}})
        return 1

    def _write_result(self, result: Mapping[str, Any]) -> None:
        write_whole(self._folder / RESULT, json.dumps(result, ensure_ascii=False, indent=1))


# --- from what is asked to a run --------------------------------------------------------------------------------------


def planned(spec: JobSpec, folder: Path, say: Any = lambda message: None) -> Run:
    """The run that a folder asks for. Raises ConfigurationError for what is not understood, InvalidRequest when there
    is nothing to learn."""
    if spec.method in NOT_BUILT:
        raise ConfigurationError(
            f"This version does not do {NOT_BUILT[spec.method]}. It does {', '.join(METHODS)}, and auto.",
            param="method",
        )
    given = knobs(spec.hyperparameters)
    if CONTROL in spec.metadata:
        spec = with_all_rounds(folder, spec)
    older = dict(older_rounds(folder, spec)) if spec.parent is not None and spec.parent_folder is not None else {}
    # Feedback comes again in every round, with more: what was learned from is not held out now.
    learned = [row for round_ in older.values() for row in round_.sides["train"]] if _is_feedback(spec) else []
    material = material_of(spec, earlier={row.question_key(): "train" for row in learned})
    if _wants_more(spec) and material.report.shares["validation"] > TrainConfig().validation:
        say(
            f"{len(material.held_out):,} of {material.num_rows:,} rows are held out, more than the usual "
            f"{TrainConfig().validation:.0%}: with fewer, the gates could not say anything."
        )
    if spec.method == AUTO:
        choice = choose(count(row for rows in material.sides.values() for row in rows))
        method, reason = choice.method, choice.reason
    else:
        method, reason = named(spec.method), ""
    parent = None
    if spec.parent is not None and spec.parent_folder is not None:
        parent = Parent(name=spec.parent_name or spec.name, version=spec.parent, folder=spec.parent_folder)
    teacher = None
    if isinstance(given.get("teacher"), str):
        teacher = prepare(given["teacher"], folder.parent.parent, lambda title, fraction: None)
        given["teacher"] = teacher.id
    multiplier = given.pop("learning_rate_multiplier", 1.0)
    try:
        config = TrainConfig.start(method, continuing=parent is not None, **{"seed": spec.seed, **given})
        config = dataclasses.replace(config, learning_rate=config.learning_rate * multiplier)
    except TypeError as error:  # a word where a number belongs
        raise ConfigurationError(f"A hyperparameter is of the wrong kind: {error}.", param="hyperparameters") from error
    if config.variant == "full":
        raise ConfigurationError(f"Jobs do not do {NOT_BUILT['full']}.", param="variant")
    _remember_answers(folder, (material, *older.values()))
    writer = partial(written, kept=folder / WORDINGS, on_progress=_told(say))
    return assemble(
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


def _told(say: Callable[[str], None]) -> Callable[[int, int], None]:
    """Says how far the other wordings are, at most ten times."""
    last = -1

    def tell(written: int, of: int) -> None:
        nonlocal last
        if (tenth := 10 * written // of) > last:
            last = tenth
            say(f"Writing other wordings: {written:,} of {of:,}.")

    return tell


def rival(spec: JobSpec, run: Run) -> str | None:
    """The version that a candidate is held against: the one it continues; of a control, the one it might have."""
    return spec.metadata.get(CONTROL) if run.parent is None else _parent(run)


def knobs(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of TrainConfig by name, and ``learning_rate_multiplier``; ``"auto"`` is left out. ConfigurationError for a
    name that is none."""
    known = {field.name for field in dataclasses.fields(TrainConfig)} - {"method"} | {"learning_rate_multiplier"}
    found: dict[str, Any] = {}
    for name, value in hyperparameters.items():
        field = NAMES.get(name, name)
        if field not in known:
            raise ConfigurationError(
                f"{name!r} is no hyperparameter. There are {', '.join(sorted(known))}.", param=f"hyperparameters.{name}"
            )
        if value != AUTO:
            found[field] = tuple(value) if isinstance(value, list) else value
    return found


FEWEST_HELD_OUT: Final = 25
"""Rows of feedback that say what is right are held out: some more than the gates want, since not all can be asked."""


def material_of(spec: JobSpec, *, earlier: Mapping[int, Side] | None = None) -> Material:
    """The rows of a run: of its files, or of the kept data set that its folder is. ``earlier``: on which side questions
    were before."""
    if len(spec.data) == 1 and spec.data[0].is_dir():
        folder = spec.data[0]
        return kept(DataStore(folder.parent.parent).get(f"{folder.parent.name}@{folder.name}"))
    share = knobs(spec.hyperparameters).get("validation", TrainConfig().validation)
    fewest = FEWEST_HELD_OUT if _wants_more(spec) else 0
    return read(spec.data, spec.validation, share=share, fewest=fewest, earlier=earlier)


def _is_feedback(spec: JobSpec) -> bool:
    return any(file.name == FEEDBACK_FILE for file in spec.data)


def _wants_more(spec: JobSpec) -> bool:
    """Whether a run may hold out more than the usual share: of feedback, where nobody said how much."""
    return _is_feedback(spec) and "validation" not in knobs(spec.hyperparameters)


def older_rounds(folder: Path, spec: JobSpec) -> Iterator[tuple[str, Material]]:
    """What earlier runs of the same adapter learned from, by the runs' names, the oldest first: those beside this one
    that succeeded, as far as their data is still there. Nothing is copied, so that what is erased is not replayed."""
    for earlier in _earlier(folder, spec):
        try:
            yield earlier.job_id, material_of(earlier)
        except InvalidRequest as error:
            if error.code != "no_usable_rows":  # all of it was erased since
                raise


def with_all_rounds(folder: Path, spec: JobSpec) -> JobSpec:
    """The same run on all that it and earlier ones learn from, for a control. Of feedback the newest file has all."""
    rounds = [*_earlier(folder, spec), spec]
    data = {file: None for earlier in rounds for file in earlier.data if file.is_file()}
    older_feedback = {file for file in data if file.name == FEEDBACK_FILE and file not in spec.data}
    return dataclasses.replace(
        spec,
        data=tuple(file for file in data if file not in older_feedback),
        validation=tuple({file: None for earlier in rounds for file in earlier.validation}),
    )


def _remember_answers(folder: Path, rounds: Iterable[Material]) -> None:
    """Which logged answers are among the rows, also those of older rounds, of which any may be replayed: whoever erases
    a user is told of this version."""
    path = folder / ANSWERS_FILE
    known = set(json.loads(path.read_bytes())) if path.exists() else set()
    found = {id for round_ in rounds for rows in round_.sides.values() for row in rows for id in row.interactions}
    if found - known:
        write_whole(path, json.dumps(sorted(found | known)))


def _earlier(folder: Path, spec: JobSpec) -> Iterator[JobSpec]:
    """Runs of the same adapter beside this one that succeeded and whose data is still there, the oldest first."""
    beside = [path for path in folder.parent.iterdir() if path != folder and (path / RESULT).is_file()]
    for path in sorted(beside, key=lambda path: (path / RESULT).stat().st_mtime_ns):
        if not (path / SPEC).is_file():
            continue
        earlier = JobSpec.read(path)
        succeeded = json.loads((path / RESULT).read_text(encoding="utf-8"))["status"] == "succeeded"
        wanted = earlier.name in {spec.name, spec.parent_name} and earlier.data != spec.data
        if succeeded and wanted and all(file.exists() for file in (*earlier.data, *earlier.validation)):
            yield earlier


def _parent(run: Run) -> str:
    return "no version, from the base" if run.parent is None else f"{run.parent.name}@{run.parent.version}"


if __name__ == "__main__":
    sys.exit(main())
