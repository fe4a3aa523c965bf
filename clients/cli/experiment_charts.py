"""How experiments look on a terminal: where they stand, and their intervals over time.

Knows rich and the types; asks nothing of anybody.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from graftwork.clients.cli.tables import format_age, format_time
from graftwork.clients.types.experiments import (
    ArmComparison,
    Experiment,
    ExperimentEvent,
    ExperimentMetric,
    ExperimentReading,
    GuardrailReading,
)

WIDTH = 60
"""Width of a chart, in columns."""

MAX_ROWS = 16
"""Maximum number of points in time in a chart."""

_COLOURS = {"better": "green", "worse": "red", "open": "yellow"}


def experiments(found: Sequence[Experiment]) -> RenderableType:
    """Render a table of experiments."""
    table = _table("Experiment", "Adapter", "Arms", "Metric", "Stands", "Age")
    for each in found:
        table.add_row(
            each.name, each.adapter, _arms_in_short(each), each.metric.label, _stands(each), format_age(each.started_at)
        )
    return table if found else Text("No experiment runs. Start one: graftwork experiments start NAME --adapter …")


def experiment(shown: Experiment) -> RenderableType:
    """Render an experiment: its arms, a chart for each treatment, guardrails, and recent events."""
    parts: list[RenderableType] = [_head(shown), *(Text(warning, style="yellow") for warning in shown.warnings)]
    parts += [Text(), _arms(shown)]
    for arm in shown.treatments:
        parts += [Text(), *_over_time(shown, arm.name)]
    if shown.reading is not None:
        parts += _watched(shown.reading)
    if shown.history:
        parts += [Text(), _history(shown.history[:6])]
    return Group(*parts)


def intervals(points: Sequence[tuple[int, ArmComparison]], metric: ExperimentMetric) -> RenderableType:
    """Render a confidence sequence as a chart; ``|`` marks no difference.

    Args:
        points: number of units and the comparison at each time, oldest first.
        metric: the primary metric.
    """
    known = [(units, found) for units, found in points if found.lower is not None and found.upper is not None]
    if not known:
        return Text("  no interval yet: it takes some units in each arm", style="dim")
    chosen = _spread(known)
    # The first intervals are as wide as the scale; what is worth seeing is how the last ones stand to no difference.
    ends = [end for _, found in chosen[len(chosen) // 3 :] for end in (found.lower or 0.0, found.upper or 0.0)]
    low, high = min(0.0, *ends), max(0.0, *ends)
    margin = (high - low) * 0.05 or 0.01
    low, high = low - margin, high + margin
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right")
    table.add_column()
    table.add_column(justify="right")
    for units, found in chosen:
        table.add_row(f"{units:,}", _bar(found, low, high, metric), _in_words(found))
    table.add_row("units", _scale(low, high), "")
    return table


def _over_time(shown: Experiment, arm: str) -> list[RenderableType]:
    title = Text.assemble((arm, "bold"), f" − {shown.control.name}, difference of {shown.metric.label}")
    title.append(f" ({_better(shown.metric)} is better)", style="dim")
    now = None if shown.reading is None else next((c for c in shown.reading.comparisons if c.arm == arm), None)
    if now is not None and now.explained >= 0.01:
        title.append(f", of whose variance the units' past explains {now.explained:.0%}", style="dim")
    points = [(found.units, found) for point in shown.readings for found in point.comparisons if found.arm == arm]
    if not points and shown.reading is not None:
        points = [(found.units, found) for found in shown.reading.comparisons if found.arm == arm]
    return [title, intervals(points, shown.metric)]


def _bar(found: ArmComparison, low: float, high: float, metric: ExperimentMetric) -> Text:
    def column(value: float) -> int:
        return min(max(round((value - low) / (high - low) * (WIDTH - 1)), 0), WIDTH - 1)

    lower, upper, middle = found.lower or 0.0, found.upper or 0.0, found.difference or 0.0
    cells = [" "] * WIDTH
    for place in range(column(lower), column(upper) + 1):
        cells[place] = "─"
    if lower >= low:
        cells[column(lower)] = "├"
    if upper <= high:
        cells[column(upper)] = "┤"
    cells[column(0.0)] = "┼" if cells[column(0.0)] != " " else "│"
    cells[column(middle)] = "●"
    return Text("".join(cells), style=_COLOURS[_verdict(found, metric)])


def _scale(low: float, high: float) -> Text:
    left, right = f"{low:+.3g}", f"{high:+.3g}"
    zero = round((0.0 - low) / (high - low) * (WIDTH - 1))
    line = list(left.ljust(WIDTH - len(right)) + right)
    if len(left) < zero < WIDTH - len(right) - 1:
        line[zero] = "0"
    return Text("".join(line), style="dim")


def _verdict(found: ArmComparison, metric: ExperimentMetric) -> str:
    if found.lower is None or found.upper is None or found.lower < 0 < found.upper:
        return "open"
    above = found.lower >= 0
    return "better" if above == (metric.goal == "up") else "worse"


def _in_words(found: ArmComparison) -> str:
    return f"{found.difference or 0.0:+.3f} [{found.lower or 0.0:+.3f}, {found.upper or 0.0:+.3f}]"


def _spread(points: Sequence[tuple[int, ArmComparison]]) -> list[tuple[int, ArmComparison]]:
    """Choose at most `MAX_ROWS` points, evenly spaced, including the last one."""
    step = -(-len(points) // MAX_ROWS)
    return list(points[::-1][::step][::-1])


def _head(shown: Experiment) -> Text:
    head = Text.assemble((shown.name, "bold"), f" on {shown.adapter} · {shown.metric.label} · ")
    if shown.outcome is None:
        head.append("running", style="green")
        head.append(f" since {format_time(shown.started_at)}")
        head.append(", acts by itself" if shown.decision.automatic else ", gives advice")
    else:
        head.append(shown.outcome.decision, style="bold")
        head.append(f" by {shown.outcome.actor}, {format_time(shown.ended_at) if shown.ended_at else ''}")
        head.append(f"\n{shown.outcome.reason}")
    for warning in shown.warnings if shown.running else ():
        head.append(f"\n{warning}", style="yellow")
    if shown.running and shown.reading is not None and shown.reading.next_at is not None:
        waiting = shown.reading.waiting
        wait = "unit waits for the end of its window and" if waiting == 1 else "units wait, the first"
        head.append(f"\n{waiting} {wait} counts at {format_time(shown.reading.next_at)}", style="dim")
    if shown.reading is not None and shown.reading.learned:
        head.append(f"\n{shown.reading.learned} units left out: a version has learned from them", style="dim")
    return head


def _arms(shown: Experiment) -> Table:
    readings = {} if shown.reading is None else {found.arm: found for found in shown.reading.arms}
    table = _table("Arm", "Answers", right=("Weight", "Requests", "Units", "Judged", shown.metric.label, "between"))
    for name in ("errors", "latency", "feedback"):
        table.add_column(name, justify="right")
    for arm in shown.arms:
        if arm.shadow is not None:
            continue
        found = readings.get(arm.name)
        means = {} if found is None else found.means
        table.add_row(
            f"{arm.name} (control)" if arm.control else arm.name,
            arm.adapter + (" *" if arm.system or arm.sampling else ""),
            f"{arm.weight or 0:.1%}",
            *(("0", "0", "0", "–", "–") if found is None else ()),
            *(
                ()
                if found is None
                else (
                    f"{found.requests:,}",
                    f"{found.units:,}",
                    f"{found.judged:,}",
                    _number(found.mean),
                    "–" if found.lower is None else f"{_number(found.lower)} … {_number(found.upper)}",
                )
            ),
            _percent(means.get("error_rate")),
            "–" if means.get("latency") is None else f"{means['latency']:.2f} s",
            _percent(means.get("feedback_rate")),
        )
    return table


def _watched(reading: ExperimentReading) -> list[RenderableType]:
    parts: list[RenderableType] = []
    if reading.guardrails:
        table = _table("Guardrail", "Of", "May", right=("Seen", "Evidence", "Enough"))
        for rail in reading.guardrails:
            style = "bold red" if rail.breached else None
            table.add_row(rail.metric, rail.arm, _may(rail), *_evidence(rail), style=style)
        parts += [Text(), table]
    ratio = reading.sample_ratio
    if ratio.mismatch:
        warning = "The arms do not get the shares that they were promised: no difference can be trusted."
        parts += [Text(), Text(warning, style="bold red")]
    if reading.shadows:
        table = _table(
            "Shadow", right=("Copies", "Answered", "Failed", "The same", "Alike", "Length", "Time", "Better", "Worse")
        )
        for shadow in reading.shadows:
            table.add_row(
                shadow.arm,
                f"{shadow.sampled:,}",
                f"{shadow.answered:,}",
                f"{shadow.errors:,}",
                _percent(shadow.identical),
                _percent(shadow.agreement),
                "–" if shadow.length_ratio is None else f"× {shadow.length_ratio:.2f}",
                "–" if shadow.latency_ratio is None else f"× {shadow.latency_ratio:.2f}",
                f"{shadow.preferred:,}",
                f"{shadow.rejected:,}",
            )
        parts += [Text(), table]
    return parts


def _may(rail: GuardrailReading) -> str:
    if rail.limit is not None:
        return f"not be beyond {rail.limit:g}"
    return f"be worse by {rail.margin or 0:g}"


def _evidence(rail: GuardrailReading) -> tuple[str, str, str]:
    return f"{rail.observations:,}", f"{min(rail.evidence, 1e9):.3g}", f"{rail.threshold:g}"


def _history(events: Iterable[ExperimentEvent]) -> Table:
    table = _table("When", "What", "Arm", "By", "Why")
    for event in events:
        table.add_row(format_time(event.at), event.action, event.arm or "–", event.actor, Text(event.reason or ""))
    return table


def _stands(each: Experiment) -> Text:
    if each.outcome is not None:
        return Text(each.outcome.decision)
    if each.reading is None:
        return Text("no units yet", style="dim")
    if each.reading.sample_ratio.mismatch:
        return Text("shares are wrong", style="bold red")
    said = Text()
    for found in each.reading.comparisons:
        verdict = _verdict(found, each.metric)
        words = _in_words(found) if found.difference is not None else f"{found.units} units"
        said.append(f"{words} ", style=_COLOURS[verdict])
    return said


def _arms_in_short(each: Experiment) -> str:
    return ", ".join(
        f"{arm.name} {arm.weight:.0%}" if arm.shadow is None else f"{arm.name} (shadow)"
        for arm in each.arms
        if arm.weight is not None or arm.shadow is not None
    )


def _better(metric: ExperimentMetric) -> str:
    return "more" if metric.goal == "up" else "less"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    for column in right:
        table.add_column(column, justify="right", overflow="fold")
    return table
