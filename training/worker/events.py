"""What a run writes about itself → what is kept of it: events, checkpoints, where it stands, and the results' table.

Knows nothing of who runs it and where it is kept.
"""

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
}
"""What a measurement is called in OpenAI's events, checkpoints and result files."""

PROGRESS_FIELDS: Final = (
    *("step", "total", "loss", "learning_rate", "validation_loss", "eta_seconds", "phase", "num_tokens"),
    *("reward", "validation_reward", "trial", "trials"),
)
RESULT_COLUMNS: Final = ("step", "train_loss", "train_mean_token_accuracy", "valid_loss", "valid_mean_token_accuracy")
REWARD_COLUMNS: Final = ("train_reward_mean", "valid_reward_mean")
"""Of runs that learn from rewards."""


@dataclass(kw_only=True)
class ProgressUpdate:
    """What a piece of ``progress.jsonl`` says; ``end`` is the byte behind its last whole line."""

    end: int
    events: list[NewJobEvent] = field(default_factory=list)
    checkpoints: dict[int, dict[str, Any]] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.events or self.checkpoints or self.progress)


def read_progress(folder: Path, start: int, before: Mapping[str, Any]) -> ProgressUpdate:
    """What was written since the byte ``start``; ``before`` is where the run stood then. A line that is not whole yet
    is left for the next time; one that a kill cut short is passed over."""
    news = ProgressUpdate(end=start)
    try:
        with (folder / PROGRESS_FILE).open("rb") as file:
            file.seek(start)
            piece = file.read(READ_AT_ONCE)
    except FileNotFoundError:
        return news
    whole, newline, _ = piece.rpartition(b"\n")
    news.end += len(whole) + len(newline)
    standing = dict(before)
    for line in whole.split(b"\n"):
        if (said := _parsed(line)) is None:
            continue
        now: dict[str, Any] = {name: said[name] for name in PROGRESS_FIELDS if name in said}
        standing |= now
        news.progress |= now
        measured = _openai_measurements(said)
        if isinstance(step := said.get("checkpoint"), int):
            news.checkpoints[step] = {**_openai_measurements(standing), **measured, "step": step}
        if message := said.get("message"):
            news.events.append(NewJobEvent(message=str(message), level=_level(said.get("level"))))
        elif "step" in said and "train_loss" in measured:
            total = f"/{standing['total']}" if standing.get("total") else ""
            text = f"Step {said['step']}{total}: training loss={measured['train_loss']:.3f}"
            news.events.append(NewJobEvent(message=text, data=measured))
    if news.progress:
        news.progress["at"] = time.time()
    return news


def results_csv(folder: Path) -> bytes:
    """A run's measurements as CSV, a row a step: of a step that was done again after a kill, the last time."""
    rows: dict[int, dict[str, Any]] = {}
    path = folder / PROGRESS_FILE
    for line in path.read_bytes().split(b"\n") if path.is_file() else ():
        said = _parsed(line)
        if said is not None and isinstance(step := said.get("step"), int):
            rows.setdefault(step, {}).update(_openai_measurements(said))
    text = io.StringIO()
    rewarded = any(name in row for row in rows.values() for name in REWARD_COLUMNS)
    columns = (*RESULT_COLUMNS, *REWARD_COLUMNS) if rewarded else RESULT_COLUMNS
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "step": step} for step, row in sorted(rows.items()) if len(row) > 1)
    return text.getvalue().encode()


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        said = json.loads(line, parse_constant=lambda _: None)  # a loss that is no number is none
    except ValueError:
        return None
    return said if isinstance(said, dict) else None


def _openai_measurements(said: Mapping[str, Any]) -> dict[str, Any]:
    named = {theirs: said[ours] for ours, theirs in OPENAI_NAMES.items() if said.get(ours) is not None}
    return {"step": said["step"], **named} if "step" in said else named


def _level(level: Any) -> Any:
    return level if level in ("info", "warn", "error") else "info"
