"""Records and the lines of files that they are read from, a piece at a time.

However long a file, a line or a quoted field is, what is in memory is one record of `MAX_RECORD_CHARS` at most.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, TextIO

from graftwork.training.data.read.encodings import BOM, undecoded_byte
from graftwork.training.data.row import Unusable

Record = tuple[int, Any]
"""The line (from 1) that a record begins on, and the record or the Unusable that says why it cannot be read."""

MAX_RECORD_CHARS: Final = 16 << 20


def text_lines(file: TextIO) -> Iterator[str]:
    """Lines with their ends, without the byte order marks that files joined by ``cat`` begin with.

    Of a line that is too long only the beginning comes, one character more than `MAX_RECORD_CHARS`.
    """
    while line := file.readline(MAX_RECORD_CHARS + 1):
        end = line
        while len(end) > MAX_RECORD_CHARS and not end.endswith(("\n", "\r")):
            end = file.readline(MAX_RECORD_CHARS + 1)
        yield line.removeprefix(BOM)


def unreadable(text: str) -> Unusable | None:
    """Why a line or a record of a file cannot be used as text; None where it can."""
    if len(text) > MAX_RECORD_CHARS:
        return too_long()
    if (byte := undecoded_byte(text)) is not None:
        return Unusable(f"not UTF-8 at byte {byte}: save the file as UTF-8")
    return None


def too_long() -> Unusable:
    return Unusable(f"longer than {MAX_RECORD_CHARS:,} characters")
