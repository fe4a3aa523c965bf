"""A report as one HTML page with its pictures inside: it can be mailed, and opened in ten years. Asks no network.

Everything that came from the data is escaped. Knows nothing of terminals.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from graftwork.training.data.report import words
from graftwork.training.data.report.numbers import (
    AnswerConflict,
    DataReport,
    LabelCount,
    LengthDistribution,
    NearDuplicates,
)
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
STYLE: Final = """
:root { color-scheme: light dark; --ink: #1d2330; --soft: #5b6577; --line: #d9dee7; --card: #fff; --ground: #f5f6f9;
  --good: #2f9e6e; --blue: #3b7dd8; --violet: #8a63d2; --grey: #9aa4b5; --pale: #c6ccd8; --orange: #e08a2e;
  --red: #d64545; --dark: #4a5263; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9f0; --soft: #9aa4b5; --line: #323846; --card: #1c212b;
  --ground: #14181f; --grey: #6d778a; --pale: #4c5566; --dark: #8a93a5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 66rem; padding: 2rem 1.25rem 4rem; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.05rem; margin: 0 0 .75rem; }
p, ul { margin: .3rem 0; } ul { padding-left: 1.2rem; } code { font-size: .85em; overflow-wrap: anywhere; }
.soft { color: var(--soft); } section { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  margin-top: 1rem; padding: 1rem 1.2rem; overflow-x: auto; } section.look { border-left: .3rem solid var(--orange); }
.side { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); }
table { border-collapse: collapse; width: 100%; } th { color: var(--soft); font-weight: 500; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; } tr:last-child td { border: 0; }
svg { display: block; width: 100%; height: auto; } .side svg { max-width: 24rem; } svg text { fill: var(--soft); }
.key { display: inline-block; width: .7rem; height: .7rem; border-radius: .15rem; margin: 0 .35rem 0 .9rem; }
.key:first-child { margin-left: 0; } td.text { overflow-wrap: anywhere; min-width: 12rem; }
"""
PAGE: Final = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>{style}</style></head>
<body>
{body}
</body>
</html>
"""


def render_page(report: DataReport, title: str) -> str:
    """The whole page."""
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{words.count(report.num_kept, "row")} of {report.num_read:,} · '
        f"<code>{report.digest}</code></p>",
        _notes(report.notes),
        _section("What became of the rows", _stacked(words.fates(report)), _sources(report)),
        _section("Split", _stacked([(side, words.SIDE_NOUNS[side], report.sides[side]) for side in SPLITS])),
        _lengths(report),
        _labels(report.labels),
        _private(report),
        _conflicts(report.conflicts, report.num_conflicts),
        _twins("Nearly the same, the second left out", report.twins, report.fates.get("near", 0)),
        _twins("Nearly the same, and labelled differently", report.near_conflicts, report.num_near_conflicts),
        _bad(report),
        f'<p class="soft">Graftwork {__version__}</p>',
    ]
    body = "\n".join(part for part in parts if part)
    return PAGE.format(title=escape(title), style=STYLE, body=body)


def _section(heading: str, *parts: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>{''.join(parts)}</section>"


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return "<section><p>Nothing to look at.</p></section>"
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<section class="look"><h2>Look at</h2><ul>{items}</ul></section>'


def _sources(report: DataReport) -> str:
    items = "".join(f"<li><b>{escape(name)}</b>: {escape(what)}</li>" for name, what in words.sources(report))
    kinds = ", ".join(f"{number:,} {words.KINDS[kind]}" for kind, number in report.kinds.items())
    facts = [f"Kept are {kinds}." if kinds else ""]
    if report.repaired:
        facts.append(f"{words.count(report.repaired, 'row')} of broken text repaired.")
    if report.users:
        facts.append(f"Rows of one user stay on one side: {words.count(report.users, 'user')}.")
    return f"<ul>{items}</ul><p>{escape(' '.join(facts))}</p>"


# --- pictures ---------------------------------------------------------------------------------------------------------


def _stacked(parts: Sequence[tuple[str, str, int]]) -> str:
    """One bar of parts, with a key: (colour's name, noun, number)."""
    total = sum(number for _, _, number in parts) or 1
    position, rects, keys = 0.0, [], []
    for name, noun, number in parts:
        width = 1000 * number / total
        said = f"{number:,} {noun}"
        rects.append(
            f'<rect x="{position:.1f}" width="{width:.1f}" height="26" style="fill:{COLOURS[name]}">'
            f"<title>{escape(said)}</title></rect>"
        )
        keys.append(f'<span class="key" style="background:{COLOURS[name]}"></span>{escape(said)}')
        position += width
    named = escape(", ".join(f"{number} {noun}" for _, noun, number in parts))
    return (
        f'<svg viewBox="0 0 1000 26" preserveAspectRatio="none" style="height:26px" role="img" aria-label="{named}">'
        f"{''.join(rects)}</svg><p>{''.join(keys)}</p>"
    )


def histogram(spread: LengthDistribution, name: str, limit: int | None = None) -> str:
    """Bars with their range below and the most frequent count above; a line at ``limit``, if it is among them."""
    if not spread.bars:
        return ""
    most = max(bar.count for bar in spread.bars)
    step = 300 / len(spread.bars)
    bars = []
    for place, bar in enumerate(spread.bars):
        height = max(100 * bar.count / most, 1.5 if bar.count else 0)
        bars.append(
            f'<rect x="{place * step + 0.5:.1f}" y="{112 - height:.1f}" width="{max(step - 1, 1):.1f}" '
            f'height="{height:.1f}" rx="1" style="fill:var(--blue)"><title>{bar.low:,} to {bar.high:,}: '
            f"{bar.count:,}</title></rect>"
        )
    line = ""
    if limit is not None and spread.bars[0].low <= limit <= spread.bars[-1].low:
        width = spread.bars[1].low - spread.bars[0].low
        x = limit / width * step
        line = f'<path d="M{x:.1f} 8V112" style="stroke:var(--red);stroke-dasharray:3"/>'
    ends = (
        f'<text x="0" y="126" font-size="11">{spread.bars[0].low:,}</text>'
        f'<text x="300" y="126" text-anchor="end" font-size="11">{spread.longest:,}</text>'
        f'<text x="300" y="9" text-anchor="end" font-size="11">{words.count(most, "row")}</text>'
    )
    return (
        f'<svg viewBox="0 0 300 130" role="img" aria-label="{escape(name)}">{"".join(bars)}'
        f'<path d="M0 112.5H300" style="stroke:var(--line)"/>{line}{ends}</svg>'
    )


# --- sections ---------------------------------------------------------------------------------------------------------


def _lengths(report: DataReport) -> str:
    lengths = report.lengths
    figures = []
    for name, spread in (("Question", lengths.question), ("Answer", lengths.answer), ("Row", lengths.row)):
        picture = histogram(spread, f"{name}: {lengths.unit}", lengths.limit)
        numbers = f"median {spread.median:,}, 95 % up to {spread.p95:,}, longest {spread.longest:,}"
        figures.append(f'<div><b>{name}</b> <span class="soft">{numbers}</span>{picture}</div>')
    return _section(f"Lengths in {lengths.unit}", f'<div class="side">{"".join(figures)}</div>')


def _labels(labels: Sequence[LabelCount]) -> str:
    if not labels:
        return ""
    most = labels[0].rows
    rows = []
    for label in labels:
        position, bars = 0.0, []
        for side in SPLITS:
            width = 300 * getattr(label, side) / most
            bars.append(f'<rect x="{position:.1f}" width="{width:.1f}" height="12" style="fill:{COLOURS[side]}"/>')
            position += width
        picture = f'<svg viewBox="0 0 300 12" preserveAspectRatio="none" style="height:12px">{"".join(bars)}</svg>'
        numbers = "".join(f'<td class="number">{getattr(label, side):,}</td>' for side in SPLITS)
        rows.append(f'<tr><td class="text">{escape(label.text)}</td><td width="45%">{picture}</td>{numbers}</tr>')
    heads = "".join(f'<th class="number">{words.SIDE_NOUNS[side]}</th>' for side in SPLITS)
    table = f"<table><tr><th>label</th><th></th>{heads}</tr>{''.join(rows)}</table>"
    return _section(f"{len(labels)} labels", table)


def _private(report: DataReport) -> str:
    if not report.found:
        return ""
    rows = [
        (found.kind, f"{found.findings:,}", f"{found.rows:,}", words.ACTIONS[found.action], ", ".join(found.places))
        for found in report.found
    ]
    return _section("Private data", _table(("kind", "found", "rows", "what became of it", "first"), rows))


def _conflicts(conflicts: Sequence[AnswerConflict], total: int) -> str:
    rows = [
        (conflict.question, verdict.text, f"{verdict.rows:,}", ", ".join(verdict.places))
        for conflict in conflicts
        for verdict in conflict.verdicts
    ]
    table = _table(("question", "answer", "rows", "where"), rows)
    return _section(f"One question, several answers ({total:,})", table) if total else ""


def _twins(heading: str, twins: Sequence[NearDuplicates], total: int) -> str:
    rows = [(pair.place, pair.text, pair.other_place, pair.other_text) for pair in twins]
    return _section(f"{heading} ({total:,})", _table(("where", "one", "where", "the other"), rows)) if total else ""


def _bad(report: DataReport) -> str:
    total = report.fates.get("bad", 0)
    rows = [(row.source, str(row.line), row.reason) for row in report.bad]
    table = _table(("source", "line", "why"), rows)
    return _section(f"Unusable, and left out ({total:,})", table) if total else ""


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f'<td class="text">{escape(cell)}</td>' for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
