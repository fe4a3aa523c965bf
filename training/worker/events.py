"""Conversion of a run's ``progress.jsonl`` to events, checkpoints and progress of its job, and to its result file."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from graftwork.adapters.learning.job import NewJobEvent
from graftwork.training.run.folder import PROGRESS_FILE

READ_AT_ONCE: Final = 1 << 20

OPENAI_NAMES: Final = {
    "loss": "train_loss",
    "token_accuracy": "train_mean_token_accuracy",
    "validation_loss": "valid_loss",
    "validation_token_accuracy": "valid_mean_token_accuracy",
    "total": "total_steps",
    "learning_rate": "learning_rate",
    "num_tokens": "num_tokens",
    "reward": "train_reward_mean",
    "validation_reward": "valid_reward_mean",
    "passed": "train_passed_share",
    "validation_passed": "valid_passed_share",
}
"""Names of measurements in OpenAI's events, checkpoints and result files, by their names in ``progress.jsonl``."""

GRADES: Final = {"grades": "train_grade_{}_mean", "validation_grades": "valid_grade_{}_mean"}
"""The same for the mean grades by each part of a grader, which stand in the braces by name."""

PROGRESS_FIELDS: Final = (
    *("step", "total", "loss", "learning_rate", "validation_loss", "eta_seconds", "phase", "num_tokens"),
    *("reward", "validation_reward", "passed", "validation_passed", "trial", "trials"),
)
RESULT_COLUMNS: Final = ("step", "train_loss", "train_mean_token_accuracy", "valid_loss", "valid_mean_token_accuracy")
REWARD_COLUMNS: Final = ("train_reward_mean", "valid_reward_mean")
"""Additional columns for runs with rewards."""
GRADER_COLUMNS: Final = ("train_passed_share", "valid_passed_share")
"""Additional columns for runs with a grader."""


@dataclass(kw_only=True)
class ProgressUpdate:
    """The content of a part of ``progress.jsonl``.

    Attributes:
        end: byte offset after the last complete line.
        events: events for the job.
        checkpoints: measurements of checkpoints, by step.
        progress: the latest value of each measurement.
    """

    end: int
    events: list[NewJobEvent] = field(default_factory=list)
    checkpoints: dict[int, dict[str, Any]] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.events or self.checkpoints or self.progress)


def read_progress(folder: Path, start: int, before: Mapping[str, Any]) -> ProgressUpdate:
    """Read what a run has written to its progress file. Incomplete and unreadable lines are skipped.

    Args:
        folder: the folder of the run.
        start: byte offset to read from.
        before: the progress of the run up to there.
    """
    update = ProgressUpdate(end=start)
    try:
        with (folder / PROGRESS_FILE).open("rb") as file:
            file.seek(start)
            piece = file.read(READ_AT_ONCE)
    except FileNotFoundError:
        return update
    complete, newline, _ = piece.rpartition(b"\n")
    update.end += len(complete) + len(newline)
    current = dict(before)
    for text in complete.split(b"\n"):
        if (line := _parsed(text)) is None:
            continue
        changes: dict[str, Any] = {name: line[name] for name in PROGRESS_FIELDS if name in line}
        current |= changes
        update.progress |= changes
        measured = _openai_measurements(line)
        if isinstance(step := line.get("checkpoint"), int):
            update.checkpoints[step] = {**_openai_measurements(current), **measured, "step": step}
        if message := line.get("message"):
            update.events.append(NewJobEvent(message=str(message), level=_level(line.get("level"))))
        elif "step" in line and "train_loss" in measured:
            total = f"/{current['total']}" if current.get("total") else ""
            message = f"Step {line['step']}{total}: training loss={measured['train_loss']:.3f}"
            update.events.append(NewJobEvent(message=message, data=measured))
    if update.progress:
        update.progress["at"] = time.time()
    return update


def results_csv(folder: Path) -> bytes:
    """Return the measurements of a run as CSV with a row per step; of a repeated step, the last measurements."""
    rows: dict[int, dict[str, Any]] = {}
    path = folder / PROGRESS_FILE
    for text in path.read_bytes().split(b"\n") if path.is_file() else ():
        line = _parsed(text)
        if line is not None and isinstance(step := line.get("step"), int):
            rows.setdefault(step, {}).update(_openai_measurements(line))
    output = io.StringIO()
    measured = {name for row in rows.values() for name in row}
    columns = list(RESULT_COLUMNS)
    for further in (REWARD_COLUMNS, GRADER_COLUMNS):
        columns += further if measured & {*further} else ()
    writer = csv.DictWriter(output, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "step": step} for step, row in sorted(rows.items()) if len(row) > 1)
    return output.getvalue().encode()


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text, parse_constant=lambda _: None)  # NaN and infinities become null
    except ValueError:
        return None
    return line if isinstance(line, dict) else None


def _openai_measurements(line: Mapping[str, Any]) -> dict[str, Any]:
    measured = {theirs: line[ours] for ours, theirs in OPENAI_NAMES.items() if line.get(ours) is not None}
    for ours, theirs in GRADES.items():
        measured |= {theirs.format(name): grade for name, grade in (line.get(ours) or {}).items()}
    return {"step": line["step"], **measured} if "step" in line else measured


def _level(level: Any) -> Any:
    return level if level in ("info", "warn", "error") else "info"
