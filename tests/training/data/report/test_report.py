"""The report of a data set: terminal, HTML page and JSON."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from graftwork.training.cli import data_show
from graftwork.training.data.pipeline import prepare
from graftwork.training.data.policy import DataPolicy
from graftwork.training.data.read.source import file_source, record_source
from graftwork.training.data.report.numbers import DataReport, LengthDistribution, report_from_json
from graftwork.training.data.report.page import COLOURS, histogram, render_page
from graftwork.training.data.report.words import FATES, FORMATS, KINDS
from tests.training.conftest import EXAMPLES
from tests.training.records import pair, question

EVIL = '<script>alert("x")</script> [bold red] & \\'


@pytest.fixture(scope="module")
def full() -> DataReport:
    """A data set about which there is everything to say."""
    records: list[dict[str, Any]] = [
        *(pair(question(number), ("pause", "gift", EVIL)[number % 3]) for number in range(80)),
        pair(question(1), "swap"),
        pair(question(2) + " now", ("pause", "gift", EVIL)[2]),
        pair(question(3) + " now", "gift"),
        pair("schÃ¶n? Write to ann@acme.com", "pause"),
        pair("My key is sk-abcdefghijklmnopqrstuvwx", "pause"),
        {EVIL: 1},
        pair(question(90), "gift", user="ann"),
    ]
    held = record_source(f"held {EVIL}", [pair(question(5), EVIL)])
    held.split = "test"
    with prepare([record_source(f"tickets {EVIL}", records), held], DataPolicy()) as prepared:
        return prepared.report


def printed(report: DataReport, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO())
    with console.capture() as capture:
        console.print(data_show.render_report(report))
    return capture.get()


def test_the_terminal_says_everything_and_takes_nothing_for_markup(full: DataReport) -> None:
    text = " ".join(printed(full).split())
    for said in (
        "86 rows read as prompts and completions",
        "1 nearly said already",
        "1 asked on another side",
        "1 unusable",
        "1 user kept together",
        "1 row of broken text",
        "Characters",
        "4 labels",
        "email",
        "masked",
        "One question, several answers (1)",
        "Nearly the same, the second left out (1)",
        "Nearly the same, and labelled differently (1)",
        "Unusable, and left out (1)",
        "no known format",
        "Look at",
        "• 1 secret found: whoever could read the data could use them. Change them.",
    ):
        assert said in text, said
    assert text.count("[bold red]") >= 3
    assert "ann@acme.com" not in text
    assert "sk-abc" not in text


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_wider_than_the_terminal(full: DataReport, width: int) -> None:
    assert max(map(len, printed(full, width).splitlines())) <= width


def test_a_sound_data_set_has_nothing_to_look_at() -> None:
    with prepare([file_source(EXAMPLES / "tickets.jsonl")]) as prepared:
        text = " ".join(printed(prepared.report).split())
    assert "Nothing to look at." in text
    assert "tickets.jsonl 300 rows read as OpenAI chat" in text


class Tags(HTMLParser):
    """Which tags open and close, in order."""

    VOID = {"meta", "br", "path", "rect"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_stands_alone_and_is_whole(full: DataReport) -> None:
    text = render_page(full, f"support {EVIL}")
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert "script" not in tags.seen
    assert re.findall(r"(?:href|src)=|url\(|@import|https?://", text) == []
    assert "prefers-color-scheme: dark" in text
    pictures = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(pictures) == 2 + 3 + len(full.labels)
    for picture in pictures:
        ElementTree.fromstring(picture)
    for said in ("What became of the rows", "Split", "Lengths in characters", "4 labels", "Private data", "Look at"):
        assert f"<h2>{said}</h2>" in text
    assert "ann@acme.com" not in text
    assert full.digest in text


def test_everything_that_can_be_counted_has_a_name_and_a_colour(full: DataReport) -> None:
    from typing import get_args

    from graftwork.training.data.read.formats import FORMATS as READ
    from graftwork.training.data.report.numbers import RowOutcome
    from graftwork.training.data.row import Kind

    assert set(get_args(RowOutcome)) == set(FATES) <= set(COLOURS)
    assert set(get_args(Kind)) == set(KINDS)
    assert {*READ, "feedback"} == set(FORMATS)
    assert set(full.fates) < set(FATES)


def test_a_report_comes_back_from_json(full: DataReport) -> None:
    import json

    assert report_from_json(json.loads(json.dumps(full.to_json()))) == full


@settings(max_examples=200)
@given(st.lists(st.integers(0, 10**7), max_size=60))
def test_every_value_is_in_one_bar(values: list[int]) -> None:
    spread = LengthDistribution.of(values)
    assert sum(bar.count for bar in spread.bars) == len(values)
    assert len(spread.bars) <= 30
    for bar, following in zip(spread.bars, spread.bars[1:], strict=False):
        assert bar.high + 1 == following.low
    for value in values:
        assert spread.bars[0].low <= value <= spread.bars[-1].high
    assert len(data_show.sparkline(spread)) == len(spread.bars)
    if values:
        assert sorted(values)[0] <= spread.median <= spread.p95 <= spread.longest == max(values)
        ElementTree.fromstring(histogram(spread, 'lengths "<&', limit=50))
    else:
        assert histogram(spread, "none") == ""
