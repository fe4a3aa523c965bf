"""A report as one HTML page with its pictures inside: it can be mailed, and loads nothing from a network.

``page.html`` and ``pictures.html`` say how it looks, and Jinja2 escapes all that comes from the data; here is what the
pictures measure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

import jinja2

from graftwork.training.data.report import words
from graftwork.training.data.report.numbers import DataReport, LabelCount, LengthDistribution, NearDuplicates
from graftwork.training.data.row import SPLITS
from graftwork.version import __version__

COLOURS: Final = {
    "kept": "var(--good)",
    "train": "var(--good)",
    "validation": "var(--blue)",
    "test": "var(--violet)",
    "same": "var(--grey)",
    "near": "var(--pale)",
    "conflict": "var(--orange)",
    "held_out": "var(--violet)",
    "private": "var(--red)",
    "bad": "var(--dark)",
}

Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]
"""A heading, the names of the columns, and the rows."""


@dataclass(frozen=True, kw_only=True)
class BarPart:
    """A part of a bar, in the units of its picture."""

    x: float
    width: float
    colour: str
    count: int
    noun: str = ""

    @property
    def text(self) -> str:
        return f"{self.count:,} {self.noun}"

    @property
    def label(self) -> str:
        """For a reader who sees no picture."""
        return f"{self.count} {self.noun}"


@dataclass(frozen=True, kw_only=True)
class HistogramBar:
    x: float
    y: float
    width: float
    height: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Where the bars of a distribution stand in a picture of 300 by 130."""

    bars: list[HistogramBar]
    low: int
    high: int
    most: str
    limit_x: float | None
    """Where the limit is; None where it is not among the bars."""


def render_page(report: DataReport, title: str) -> str:
    """The whole page."""
    lengths = report.lengths
    return (
        _environment()
        .get_template("page.html")
        .render(
            report=report,
            title=title,
            version=__version__,
            words=words,
            fates=_parts(words.fates(report), 1000),
            sides=_parts([(side, words.SIDE_NOUNS[side], report.sides[side]) for side in SPLITS], 1000),
            facts=_facts(report),
            lengths=[
                (name, spread, _histogram(spread, lengths.limit))
                for name, spread in (("Question", lengths.question), ("Answer", lengths.answer), ("Row", lengths.row))
            ],
            labels=_labels(report.labels),
            tables=[table for table, total in _tables(report) if total],
        )
    )


def histogram(spread: LengthDistribution, name: str, limit: int | None = None) -> str:
    """The picture of one distribution as SVG; empty where there are no values."""
    macros: Any = _environment().get_template("pictures.html").module
    return str(macros.histogram(_histogram(spread, limit), name))


@cache
def _environment() -> jinja2.Environment:
    files = resources.files("graftwork.training.data.report")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: files.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["number"] = "{:,}".format
    environment.filters["decimal"] = "{:.1f}".format
    return environment


def _facts(report: DataReport) -> str:
    kinds = ", ".join(f"{number:,} {words.KINDS[kind]}" for kind, number in report.kinds.items())
    facts = [f"Kept are {kinds}." if kinds else ""]
    if report.repaired:
        facts.append(f"{words.count(report.repaired, 'row')} of broken text repaired.")
    if report.users:
        facts.append(f"Rows of one user stay on one side: {words.count(report.users, 'user')}.")
    return " ".join(facts)


def _parts(counts: Sequence[tuple[str, str, int]], width: float, total: int | None = None) -> list[BarPart]:
    """The parts of a bar of ``width``, one beside the other: (name of the colour, noun, count)."""
    total = total or sum(count for _, _, count in counts) or 1
    parts, x = [], 0.0
    for name, noun, count in counts:
        parts.append(BarPart(x=x, width=width * count / total, colour=COLOURS[name], count=count, noun=noun))
        x += parts[-1].width
    return parts


def _histogram(spread: LengthDistribution, limit: int | None) -> Histogram | None:
    if not spread.bars:
        return None
    most = max(bar.count for bar in spread.bars)
    step = 300 / len(spread.bars)
    bars = []
    for place, bar in enumerate(spread.bars):
        # A bar with anything in it is seen.
        height = max(100 * bar.count / most, 1.5 if bar.count else 0)
        text = f"{bar.low:,} to {bar.high:,}: {bar.count:,}"
        bars.append(
            HistogramBar(x=place * step + 0.5, y=112 - height, width=max(step - 1, 1), height=height, text=text)
        )
    limit_x = None
    if limit is not None and spread.bars[0].low <= limit <= spread.bars[-1].low:
        limit_x = limit / (spread.bars[1].low - spread.bars[0].low) * step
    return Histogram(
        bars=bars, low=spread.bars[0].low, high=spread.longest, most=words.count(most, "row"), limit_x=limit_x
    )


def _labels(labels: Sequence[LabelCount]) -> list[dict[str, Any]]:
    """Of each label its text and its bar, as wide as its rows beside the most frequent label's."""
    return [
        {
            "text": label.text,
            "parts": _parts([(side, side, getattr(label, side)) for side in SPLITS], 300, labels[0].rows),
        }
        for label in labels
    ]


def _tables(report: DataReport) -> Iterator[tuple[Table, int]]:
    """The tables below the pictures, each with how many there are of what it shows."""
    private = [
        (found.kind, f"{found.findings:,}", f"{found.rows:,}", words.ACTIONS[found.action], ", ".join(found.places))
        for found in report.found
    ]
    yield ("Private data", ("kind", "found", "rows", "what became of it", "first"), private), len(private)
    conflicts = [
        (conflict.question, verdict.text, f"{verdict.rows:,}", ", ".join(verdict.places))
        for conflict in report.conflicts
        for verdict in conflict.verdicts
    ]
    total = report.num_conflicts
    yield (f"One question, several answers ({total:,})", ("question", "answer", "rows", "where"), conflicts), total
    total = report.fates.get("near", 0)
    yield _pairs(f"Nearly the same, the second left out ({total:,})", report.twins), total
    total = report.num_near_conflicts
    yield _pairs(f"Nearly the same, and labelled differently ({total:,})", report.near_conflicts), total
    total = report.fates.get("bad", 0)
    bad = [(row.source, str(row.line), row.reason) for row in report.bad]
    yield (f"Unusable, and left out ({total:,})", ("source", "line", "why"), bad), total


def _pairs(heading: str, pairs: Sequence[NearDuplicates]) -> Table:
    rows = [(pair.place, pair.text, pair.other_place, pair.other_text) for pair in pairs]
    return heading, ("where", "one", "where", "the other"), rows
