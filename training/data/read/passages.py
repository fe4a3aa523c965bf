"""Passages of plain text, for continued pretraining."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TextIO

from graftwork.training.data.read.lines import Record, text_lines, unreadable
from graftwork.training.data.row import Unusable

PASSAGE_CHARS: Final = 8_000
"""Minimum length of a passage, in characters, before it is cut at an empty line; at twice as many it is cut anyway."""


def passages(file: TextIO) -> Iterator[Record]:
    """Cut a plain text into passages of about `PASSAGE_CHARS`, at empty lines or else at line ends.

    Yields:
        Records of the form ``{"text": …}``.
    """
    lines: list[str] = []
    first_line, length = 1, 0
    for line, text in enumerate(text_lines(file), start=1):
        if (problem := _problem(text)) is not None:
            yield line, problem
            continue
        if not lines:
            first_line = line
        lines.append(text)
        length += len(text)
        if length >= PASSAGE_CHARS and (not text.strip() or length >= 2 * PASSAGE_CHARS):
            yield from _passage(first_line, lines)
            lines, length = [], 0
    yield from _passage(first_line, lines)


def _problem(text: str) -> Unusable | None:
    if "\0" in text:
        return Unusable("holds a NUL character, as UTF-16 does: save the file as UTF-8")
    return unreadable(text)


def _passage(line: int, lines: list[str]) -> Iterator[Record]:
    text = "".join(lines).strip()
    if text:
        yield line, {"text": text}
