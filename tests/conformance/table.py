"""The tables of ``docs/compatibility.md``: written from results, read back, and compared."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tests.conformance.clients import CLIENTS, FEATURES, Client
from tests.conformance.run import Result
from tests.conftest import CHECKOUT

PAGE = CHECKOUT / "docs" / "compatibility.md"
BEGIN, END = "<!-- Written by python -m tests.conformance: -->", "<!-- to here. -->"

YES, NO, ABSENT = "yes", "no", "–"
"""Cells: where an error was asked for, its class stands for yes; a client that has no such feature has a dash."""

MAX_DETAIL_CHARS = 160

Cells = dict[tuple[str, str], str]
"""By client and feature."""


def cells_of(results: Sequence[Result]) -> Cells:
    """What stands in the tables after a run."""
    return {
        (result.client, result.feature): (f"`{result.detail}`" if result.detail else YES) if result.ok else NO
        for result in results
    }


def read() -> Cells:
    """What stands in the page's tables."""
    cells: Cells = {}
    for columns, rows in _tables(_between(PAGE.read_text(encoding="utf-8"))):
        for title, *values in rows:
            client = title.partition(" (")[0]
            cells |= {(client, column): value for column, value in zip(columns, values, strict=True) if value != ABSENT}
    return cells


def write(results: Sequence[Result]) -> None:
    """Put the tables into the page."""
    before, begin, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    PAGE.write_text(f"{before}{begin}\n\n{render(results)}\n{end}{after}", encoding="utf-8")


def worse(before: Cells, now: Cells) -> list[str]:
    """What has become worse: a feature that worked and does not, or that raises another error than it did."""
    return [
        f"{client}, {feature}: was {cell}, is {now.get((client, feature), ABSENT)}"
        for (client, feature), cell in before.items()
        if cell != NO and now.get((client, feature), ABSENT) != cell
    ]


def render(results: Sequence[Result]) -> str:
    """The tables, and the errors behind every "no"."""
    cells = cells_of(results)
    parts = []
    for group, features in FEATURES.items():
        clients = [client for client in CLIENTS if any((client.title, feature) in cells for feature in features)]
        lines = [
            _row([group, *(feature.partition(": ")[2] or feature for feature in features)]),
            _row(["---"] * (len(features) + 1)),
        ]
        for client in clients:
            shown = (cells.get((client.title, feature), ABSENT) for feature in features)
            lines.append(_row([_titled(client), *shown]))
        parts.append("\n".join(lines))
    if failures := _failures(results):
        parts.append("\n".join(["Where it says no:\n", *failures]))
    return "\n\n".join(parts)


def _failures(results: Sequence[Result]) -> list[str]:
    """The items of a list: what each client raised, and for which features."""
    features: dict[tuple[str, str], list[str]] = {}
    for result in results:
        if not result.ok:
            features.setdefault((result.client, _short(result.detail)), []).append(result.feature)
    return [f"- {client} ({', '.join(names)}): `{detail}`" for (client, detail), names in features.items()]


def _titled(client: Client) -> str:
    return f"{client.title} ({client.package} {client.version})"


def _short(detail: str) -> str:
    text = re.sub(r"\s+", " ", detail).replace("`", "'").strip()
    text = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:8000", text)
    return text if len(text) <= MAX_DETAIL_CHARS else f"{text[: MAX_DETAIL_CHARS - 1]}…"


def _row(values: Sequence[str]) -> str:
    return f"| {' | '.join(values)} |"


def _between(page: str) -> str:
    return page.partition(BEGIN)[2].partition(END)[0]


def _tables(text: str) -> Iterator[tuple[tuple[str, ...], list[list[str]]]]:
    """Of every table: its features, and its rows."""
    for block in text.split("\n\n"):
        rows = [line.strip("| ").split(" | ") for line in block.strip().splitlines() if line.startswith("|")]
        if rows:
            yield FEATURES[rows[0][0]], rows[2:]
