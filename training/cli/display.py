"""The display of a run: a progress bar on a terminal, or some lines in a log."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from graftwork.training.data.row import BadRow
from graftwork.training.run.plan import TrainingRun
from graftwork.training.run.progress import RunMetrics, SearchTrial, StepListener, TrainingStep

SHOWN_BAD_ROWS = 20
LOG_LINES = 20
"""Approximate number of lines of a run in a log."""


def plan(console: Console, run: TrainingRun) -> None:
    """Print what a run will train on, and the rows that it cannot use."""
    bad_rows(console, run.bad, run.num_bad)
    for remark in run.remarks:
        _say(console, remark)
    if run.num_cut:
        _say(
            console,
            f"{_count(run.num_cut, 'row')} longer than {run.config.max_length} tokens lost the end of the answer "
            "(--max-length).",
        )
    if not run.validation:
        _say(console, "No validation rows: the loss will be measured on the training rows alone.")
    num_tokens = sum(map(len, run.rows))
    held = f" and measuring on {len(run.validation)}" if run.validation else ""
    _say(
        console,
        f"Training {run.name} on {_count(len(run.rows), 'row')} ({num_tokens:,} tokens){held}, base {run.base.id}.",
    )


def bad_rows(console: Console, bad: Sequence[BadRow], total: int) -> None:
    """Print the first of ``total`` rows that cannot be used."""
    if not total:
        return
    _say(console, f"{_count(total, 'row')} cannot be used and {'is' if total == 1 else 'are'} left out:")
    shown = bad[:SHOWN_BAD_ROWS]
    for row in shown:
        _say(console, f"  {row}")
    if total > len(shown):
        _say(console, f"  … and {total - len(shown)} more")


@contextmanager
def writing(console: Console) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback that shows the progress of paraphrasing: the number generated, and the total."""
    with preparing(console) as progress:
        yield lambda written, of: progress("Writing other wordings", written / of)


def finished(console: Console, metrics: RunMetrics) -> None:
    """Print the metrics of a finished run."""
    took, accuracy = _duration(metrics.seconds), metrics.validation_token_accuracy
    _say(console, f"{metrics.num_steps} steps in {took}: loss {metrics.first_loss:.3f} → {metrics.last_loss:.3f}.")
    if metrics.base_validation_reward is not None and metrics.validation_reward is not None:
        _say(
            console,
            f"On the validation rows: reward {metrics.base_validation_reward:.3f} → {metrics.validation_reward:.3f}.",
        )
    if metrics.base_validation_loss is not None and metrics.validation_loss is not None:
        _say(
            console,
            f"On the validation rows: loss {metrics.base_validation_loss:.3f} (base) → {metrics.validation_loss:.3f}"
            + (f", {accuracy:.0%} of the answers' tokens right." if accuracy is not None else "."),
        )


def trials(console: Console, trials: Sequence[SearchTrial]) -> None:
    """Print the trials of a search; the best one is marked."""
    table = Table("Trial", "Learning rate", "Rank", "Epochs", "Loss", "", box=None, header_style="bold")
    for trial in trials:
        table.add_row(
            str(trial.number),
            f"{trial.learning_rate:.3g}",
            str(trial.rank),
            f"{trial.epochs:g}",
            "–" if trial.loss is None else f"{trial.loss:.4f}",
            "the best" if trial.best else "" if trial.outcome == "finished" else trial.outcome,
            style="bold" if trial.best else None,
        )
    console.print(table)


@contextmanager
def preparing(console: Console) -> Iterator[Callable[[str, float | None], None]]:
    """Yield a callback for ``base.prepare`` that shows its progress: a title, and a fraction of 0 to 1 or None."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None, visible=False)
        last = ""

        def show(title: str, fraction: float | None) -> None:
            nonlocal last
            if title != last and not console.is_terminal:
                _say(console, f"{title} …")
            last = title
            total = None if fraction is None else 1.0
            bar.update(task, description=title, total=total, completed=fraction or 0.0, visible=True)

        yield show


@contextmanager
def training(console: Console) -> Iterator[StepListener]:
    """Yield a step listener that shows each step."""
    if not console.is_terminal:
        yield _logging(console)
        return
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("training", total=None, numbers="loading the base")

        def show(step: TrainingStep) -> None:
            bar.update(task, total=step.num_steps, completed=step.step, numbers=_numbers(step))

        yield show


def _logging(console: Console) -> StepListener:
    last_line, last_validation = -1, None

    def show(step: TrainingStep) -> None:
        nonlocal last_line, last_validation
        line = step.step * LOG_LINES // step.num_steps
        if line != last_line or step.validation_loss != last_validation:
            _say(console, f"step {step.step}/{step.num_steps} · {_numbers(step)}")
        last_line, last_validation = line, step.validation_loss

    return show


def _numbers(step: TrainingStep) -> str:
    parts = [f"trial {step.trial} of {step.trials}"] if step.trials else []
    if step.loss is not None:
        parts.append(f"loss {step.loss:.3f}")
    if step.reward is not None:
        parts.append(f"reward {step.reward:.3f}")
    if step.validation_reward is not None:
        parts.append(f"validation {step.validation_reward:.3f}")
    if step.validation_loss is not None:
        parts.append(f"validation {step.validation_loss:.3f}")
    if step.tokens_per_second is not None:
        parts.append(f"{step.tokens_per_second:,.0f} tokens/s")
    if step.seconds_left:
        parts.append(f"{_duration(step.seconds_left)} left")
    return " · ".join(parts) or "starting"


def _duration(seconds: float) -> str:
    """``0:02:31``."""
    return str(timedelta(seconds=round(seconds)))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _say(console: Console, message: str) -> None:
    console.print(message, markup=False, highlight=False, soft_wrap=True)
