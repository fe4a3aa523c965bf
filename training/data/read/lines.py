"""Records, and the lines of files that they are read from.

However long a file, a line or a quoted field is, at most one record of `MAX_RECORD_CHARS` is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, TextIO

from graftwork.training.data.read.encodings import BOM, undecoded_byte
from graftwork.training.data.row import Unusable

Record = tuple[int, Any]
"""The line (from 1) that a record begins on, and the record, or an Unusable with the reason why it cannot be read."""

MAX_RECORD_CHARS: Final = 16 << 20
"""Maximum length of a record, in characters."""


def text_lines(file: TextIO) -> Iterator[str]:
    """Yield the lines of a file with their ends, without byte order marks (which joined files have in the middle).

    Lines longer than `MAX_RECORD_CHARS` are truncated to one character more than that.
    """
    while line := file.readline(MAX_RECORD_CHARS + 1):
        end = line
        while len(end) > MAX_RECORD_CHARS and not end.endswith(("\n", "\r")):
            end = file.readline(MAX_RECORD_CHARS + 1)
        yield line.removeprefix(BOM)


def unreadable(text: str) -> Unusable | None:
    """Return why a line or record cannot be used as text, because of its length or encoding; None if it can."""
    if len(text) > MAX_RECORD_CHARS:
        return too_long()
    if (byte := undecoded_byte(text)) is not None:
        return Unusable(f"not UTF-8 at byte {byte}: save the file as UTF-8")
    return None


def too_long() -> Unusable:
    """Return the reason for a record that is longer than `MAX_RECORD_CHARS`."""
    return Unusable(f"longer than {MAX_RECORD_CHARS:,} characters")
