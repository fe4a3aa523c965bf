"""Names for the numbers of a report, shared by the terminal and the HTML page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from graftwork.training.data.report.numbers import DataReport, RowOutcome
from graftwork.training.data.row import SPLITS

FATES: Final[dict[RowOutcome, str]] = {
    "kept": "kept",
    "same": "said already",
    "near": "nearly said already",
    "conflict": "contradicted",
    "held_out": "asked on another side",
    "private": "private",
    "expired": "about answers no longer there",
    "bad": "unusable",
}
KINDS: Final = {
    "example": "examples",
    "preference": "preferences",
    "judged": "judged answers",
    "scored": "scored answers",
    "text": "texts",
    "question": "questions for graders",
}
FORMATS: Final = {
    "question": "questions for graders",
    "chat": "OpenAI chat",
    "openai-dpo": "OpenAI preferences",
    "preference": "preferences",
    "sharegpt": "ShareGPT",
    "kto": "judged answers (KTO)",
    "scored": "scored answers",
    "alpaca": "Alpaca",
    "completion": "prompts and completions",
    "text": "texts",
    "feedback": "logged answers with feedback",
}
ACTIONS: Final = {"mask": "masked", "drop": "rows left out", "refuse": "refused", "keep": "kept"}
SIDE_NOUNS: Final = {"train": "training", "validation": "validation", "test": "test"}


def count(number: int, noun: str) -> str:
    """Format a count with its noun: ``1 row``, ``2,000 rows``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def sources(report: DataReport) -> Iterator[tuple[str, str]]:
    """Yield the name of each source, and a description of its rows, formats and columns."""
    for source in report.sources:
        formats = ", ".join(
            f"{number:,} {FORMATS[name]}" if len(source.formats) > 1 else FORMATS[name]
            for name, number in source.formats.items()
        )
        columns = ""
        if source.columns:
            *asked, answer = source.columns
            columns = f"; question from {' and '.join(map(repr, asked))}, answer from {answer!r}"
        yield source.name, f"{count(source.rows, 'row')} read as {formats or 'nothing'}{columns}"


def fates(report: DataReport) -> list[tuple[RowOutcome, str, int]]:
    """Return each outcome that any row had, with its name and number of rows; ``kept`` comes first."""
    return [(fate, noun, report.fates[fate]) for fate, noun in FATES.items() if report.fates.get(fate)]


def split(report: DataReport) -> str:
    """Format the number of rows by split: ``240 training · 30 validation · 30 test``."""
    return " · ".join(f"{report.sides[side]:,} {SIDE_NOUNS[side]}" for side in SPLITS)
