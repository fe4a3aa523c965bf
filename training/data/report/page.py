"""The report of a data set as one self-contained HTML page, with histograms as inline SVG.

The templates are ``page.html`` and ``pictures.html``; Jinja2 escapes all text from the data. This module computes the
geometry of the pictures.
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
    "expired": "var(--soft)",
    "bad": "var(--dark)",
}

Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]
"""Heading, column names and rows of a table."""


@dataclass(frozen=True, kw_only=True)
class BarPart:
    """A segment of a stacked bar; ``x`` and ``width`` are in units of the picture."""

    x: float
    width: float
    colour: str
    count: int
    noun: str = ""

    @property
    def text(self) -> str:
        """Count and noun, with a thousands separator."""
        return f"{self.count:,} {self.noun}"

    @property
    def label(self) -> str:
        """Text for screen readers."""
        return f"{self.count} {self.noun}"


@dataclass(frozen=True, kw_only=True)
class HistogramBar:
    """A bar of a histogram in units of the picture, and its tooltip."""

    x: float
    y: float
    width: float
    height: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """The geometry of a histogram in a picture of 300 by 130 units."""

    bars: list[HistogramBar]
    low: int
    high: int
    most: str
    limit_x: float | None
    """Position of the limit; None if it is outside the bars."""


def render_page(report: DataReport, title: str) -> str:
    """Render a report as an HTML page.

    Args:
        report: the report.
        title: title of the page.
    """
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
    """Render a distribution as SVG; empty if it has no values.

    Args:
        spread: the distribution.
        name: title of the histogram.
        limit: value to mark with a line.
    """
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
    if report.asked:
        facts.append(f"Users were asked for the feedback of {words.count(report.asked, 'row')}, by a random draw.")
    if report.repaired:
        facts.append(f"{words.count(report.repaired, 'row')} of broken text repaired.")
    if report.users:
        facts.append(f"Rows of one user stay on one side: {words.count(report.users, 'user')}.")
    return " ".join(facts)


def _parts(counts: Sequence[tuple[str, str, int]], width: float, total: int | None = None) -> list[BarPart]:
    """Lay out the segments of a stacked bar of ``width``, given as (name of the colour, noun, count)."""
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
        # A bin with any value has a visible bar.
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
    """Return the text and bar of each label; widths are relative to the most frequent label."""
    return [
        {
            "text": label.text,
            "parts": _parts([(side, side, getattr(label, side)) for side in SPLITS], 300, labels[0].rows),
        }
        for label in labels
    ]


def _tables(report: DataReport) -> Iterator[tuple[Table, int]]:
    """Yield the tables below the pictures, each with the total number of items, of which it may show only some."""
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
