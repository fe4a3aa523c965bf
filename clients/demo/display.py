"""The display of the demo: live on a terminal, or line by line in a log."""

from __future__ import annotations

import time
from collections import deque
from datetime import timedelta
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from graftwork.clients.cli import experiment_charts
from graftwork.clients.cli.context import CONTROL_CHARACTERS
from graftwork.clients.cli.tables import format_time
from graftwork.clients.demo.results import DemoResult
from graftwork.clients.demo.users import UserAnswer
from graftwork.clients.types.experiments import Experiment

SHOWN_ANSWERS: Final = 5
"""Number of the latest answers that are shown."""

_LINE: Final = 76


class LoopDisplay:
    """A `LoopObserver` that shows the finished steps, the current one, the latest answers, and the experiment."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._done: list[Text] = []
        self._step: str | None = None
        self._spinner = Spinner("dots")
        self._bar: tuple[int, int | None] = (0, None)
        self._note = ""
        self._answers: deque[UserAnswer] = deque(maxlen=SHOWN_ANSWERS)
        self._experiment: Experiment | None = None
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(get_renderable=self._picture, console=self._console, refresh_per_second=8, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            for line in self._done:
                self._console.print(line)

    # -- events --------------------------------------------------------------------------------------------------
    def begin(self, what: str) -> None:
        """Show a new step."""
        self._step, self._bar, self._note = what, (0, None), ""
        self._answers.clear()
        if self._live is None:
            self._say(f"{self._clock()}  {what} …")

    def progress(self, done: int, total: int | None, note: str) -> None:
        """Show the progress of the step."""
        self._bar, self._note = (done, total), note

    def log_line(self, line: str) -> None:
        """Show the last line of a command's log."""
        self._note = line.translate(CONTROL_CHARACTERS)

    def end(self, result: str) -> None:
        """Show the result of the step."""
        line = Text.assemble((f"{self._clock()}  ", "dim"), ("✓ ", "green"), result.translate(CONTROL_CHARACTERS))
        self._done.append(line)
        self._step = None
        if self._live is None:
            self._say(line.plain)

    def told(self, told: UserAnswer) -> None:
        """Show an answer that a user got."""
        self._answers.append(told)

    def experiment(self, experiment: Experiment) -> None:
        """Show the state of the experiment."""
        self._experiment = experiment

    # -- rendering -----------------------------------------------------------------------------------------------
    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _clock(self) -> str:
        return str(timedelta(seconds=round(time.monotonic() - self._began)))

    def _picture(self) -> RenderableType:
        parts: list[RenderableType] = [*self._done]
        if self._step is not None:
            self._spinner.update(text=Text.assemble((f"{self._clock()}  ", "dim"), (self._step, "bold")))
            done, total = self._bar
            below = Table.grid(padding=(0, 2))
            bar = ProgressBar(total=total, completed=done, width=30) if total else Text()
            below.add_row(bar, Text(f"{done}/{total}" if total else ""), Text(self._note[:120], style="dim"))
            parts += [self._spinner, below]
        if self._answers:
            parts += [Text(), _answer_table(self._answers)]
        if self._experiment is not None and self._experiment.running:
            parts += [Text(), experiment_charts.experiment(self._experiment)]
        return Group(*parts)


def render_result(result: DemoResult) -> RenderableType:
    """Render the result: the experiment, the history of the adapter, and the accuracy of both versions."""
    history = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("When", "What", "From", "To", "By", "Why"):
        history.add_column(column, overflow="fold")
    for event in reversed(result.history):
        name = f"{event.action} {event.alias}" if event.alias else event.action
        before = "–" if event.from_version is None else str(event.from_version)
        after = "–" if event.to_version is None else str(event.to_version)
        history.add_row(format_time(event.at), name, before, after, event.actor, event.reason or "")
    measured = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("Version", "Right", "Of", "Accuracy", ""):
        measured.add_column(column, justify="left" if column in ("Version", "") else "right")
    for each in result.accuracy:
        live = Text("live", style="green") if each.version == result.live else Text()
        measured.add_row(each.version, str(each.right), str(each.asked), f"{each.share:.1%}", live)
    first, second = result.accuracy
    if result.promoted:
        verdict = Text(f"{second.version} won and is live. ", style="bold green")
    else:
        verdict = Text(f"{second.version} did not win: {result.live} stays live. ", style="bold yellow")
        verdict.append(f"{result.reason}. ", style="default")
    minutes = timedelta(seconds=round(result.seconds))
    verdict.append(
        f"{result.corrections} corrections, {first.share:.0%} → {second.share:.0%} of held-out queries right, "
        f"{sum(result.arms.values()):,} users each with one version ({result.flips} met both), in {minutes}.",
        style="default",
    )
    return Group(
        *([] if result.experiment is None else [experiment_charts.experiment(result.experiment)]),
        Text("─" * _LINE, style="dim"),
        history,
        Text(),
        measured,
        Text(),
        verdict,
    )


def _answer_table(answers: deque[UserAnswer]) -> Table:
    table = Table.grid(padding=(0, 2))
    for each in answers:
        mark = Text("👍", style="green") if each.right else Text("👎", style="red")
        said = Text(each.answer.translate(CONTROL_CHARACTERS)[:50], style="green" if each.right else "red")
        fix = Text("" if each.right else f"no: {each.query.label}", style="yellow")
        table.add_row(
            Text(each.adapter, style="dim"), Text(each.query.text.translate(CONTROL_CHARACTERS)[:60]), mark, said, fix
        )
    return table
