"""The report of a data set on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from graftwork.training.data.report import words
from graftwork.training.data.report.numbers import DataReport, HistogramBin, LengthDistribution, NearDuplicates
from graftwork.training.data.row import SPLITS
from graftwork.training.data.store import StoredDataSet

BLOCKS = " ▁▂▃▄▅▆▇█"
LABELS_SHOWN = 12
BAD_SHOWN = 10
EXAMPLES_SHOWN = 3


def render_report(told: DataReport) -> RenderableType:
    """Render a report, for 80 columns or more."""
    parts: list[RenderableType] = [_facts(told), _lengths(told)]
    parts += [part for part in (_found(told), _labels(told), _bad(told), _conflicts(told), _twins(told)) if part]
    parts.append(_notes(told.notes))
    return Group(*_apart(parts))


def render_data_sets(found: Iterable[StoredDataSet]) -> RenderableType:
    """Render a table of data sets."""
    table = _table("Data set", right=("Train", "Validation", "Test"))
    for column in ("Made", "Digest"):
        table.add_column(column)
    for one in found:
        rows = one.num_rows
        made = one.created_at.astimezone().strftime("%Y-%m-%d %H:%M")
        _row(table, one.id, *(f"{rows[side]:,}" for side in SPLITS), made, one.digest.removeprefix("sha256:")[:12])
    return table if table.row_count else Text("No data sets yet. Make one: graftwork data check FILE --save NAME")


def _facts(told: DataReport) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, what in words.sources(told):
        _row(table, name, what)
    _row(table, "rows", ", ".join(f"{number:,} {noun}" for _, noun, number in words.fates(told)))
    kinds = ", ".join(f"{number:,} {words.KINDS[kind]}" for kind, number in told.kinds.items())
    if told.corrections:
        kinds += f", {told.corrections:,} of them corrections"
    if told.asked:
        kinds += f", {told.asked:,} from users who were asked"
    _row(table, "kinds", kinds or "–")
    users = f", {words.count(told.users, 'user')} kept together" if told.users else ""
    _row(table, "split", words.split(told) + users)
    if told.repaired:
        _row(table, "repaired", f"{words.count(told.repaired, 'row')} of broken text")
    _row(table, "digest", told.digest)
    return table


def _lengths(told: DataReport) -> RenderableType:
    table = _table(told.lengths.unit.capitalize(), "Histogram", right=("median", "95 %", "longest", "all"))
    for name, spread in (
        ("question", told.lengths.question),
        ("answer", told.lengths.answer),
        ("row", told.lengths.row),
    ):
        numbers = (spread.median, spread.p95, spread.longest, spread.total)
        _row(table, name, sparkline(spread), *(f"{number:,}" for number in numbers))
    return table


def sparkline(spread: LengthDistribution) -> str:
    """Render a histogram in one line, with a block character for each bin."""
    most = max((bar.count for bar in spread.bars), default=0)
    return "".join(_block(bar, most) for bar in spread.bars)


def _block(bar: HistogramBin, most: int) -> str:
    # A bin with any value has a visible bar.
    return BLOCKS[max(round(bar.count / most * (len(BLOCKS) - 1)), bar.count > 0)]


def _found(told: DataReport) -> RenderableType | None:
    if not told.found:
        return None
    table = _table("Private", right=("found", "rows"))
    table.add_column("What became of it")
    table.add_column("First", overflow="fold")
    for found in told.found:
        first = ", ".join(found.places[:3])
        _row(table, found.kind, f"{found.findings:,}", f"{found.rows:,}", words.ACTIONS[found.action], first)
    return table


def _labels(told: DataReport) -> RenderableType | None:
    if not told.labels:
        return None
    table = _table(f"{len(told.labels)} labels", "", right=("train", "validation", "test"))
    shown: list[int | None] = [*range(len(told.labels))]
    if len(shown) > LABELS_SHOWN:
        half = LABELS_SHOWN // 2
        shown = [*shown[:half], None, *shown[-half:]]
    most = told.labels[0].rows
    for index in shown:
        if index is None:
            _row(table, "…", "")
            continue
        label = told.labels[index]
        sides = (label.train, label.validation, label.test)
        _row(table, label.text, "█" * max(round(20 * label.rows / most), 1), *(f"{number:,}" for number in sides))
    return table


def _bad(told: DataReport) -> RenderableType | None:
    lines = [f"{row.source} line {row.line}: {row.reason}" for row in told.bad]
    return _list("Unusable, and left out", lines, told.fates.get("bad", 0), BAD_SHOWN)


def _conflicts(told: DataReport) -> RenderableType | None:
    lines = [
        "\n".join(
            (repr(conflict.question), *(f"  {one.text!r} ({', '.join(one.places[:3])})" for one in conflict.verdicts))
        )
        for conflict in told.conflicts
    ]
    return _list("One question, several answers", lines, told.num_conflicts, EXAMPLES_SHOWN)


def _twins(told: DataReport) -> RenderableType | None:
    lists = (
        ("Nearly the same, the second left out", told.twins, told.fates.get("near", 0)),
        ("Nearly the same, and labelled differently", told.near_conflicts, told.num_near_conflicts),
    )
    shown = [_list(title, [_pair(twins) for twins in some], total, EXAMPLES_SHOWN) for title, some, total in lists]
    found = [part for part in shown if part is not None]
    return Group(*_apart(found)) if found else None


def _pair(twins: NearDuplicates) -> str:
    return f"{twins.place}  {twins.text}\n{twins.other_place}  {twins.other_text}"


def _notes(notes: Sequence[str]) -> RenderableType:
    if not notes:
        return Text("Nothing to look at.", style="green")
    return Group(Text("Look at", style="bold yellow"), *(Text(f"• {note}") for note in notes))


def _list(title: str, lines: Sequence[str], total: int, shown: int) -> RenderableType | None:
    if not total:
        return None
    parts: list[RenderableType] = [
        Text(f"{title} ({total:,})", style="bold"),
        *(Padding(Text(line), (0, 0, 0, 2)) for line in lines[:shown]),
    ]
    if total > min(shown, len(lines)):
        parts.append(Text(f"  … and {total - min(shown, len(lines)):,} more", style="dim"))
    return Group(*parts)


def _apart(parts: Sequence[RenderableType]) -> list[RenderableType]:
    """Separate the parts by empty lines."""
    spaced: list[RenderableType] = []
    for part in parts:
        spaced += [part, Text("")]
    return spaced[:-1]


def _row(table: Table, *cells: str) -> None:
    """Add a row of plain texts, since text from data may look like markup."""
    table.add_row(*map(Text, cells))


def _table(*left: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in left:
        table.add_column(column, overflow="fold")
    for column in right:
        table.add_column(column, justify="right")
    return table
