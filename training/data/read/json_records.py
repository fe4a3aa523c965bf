"""JSON records: one object per line, or one array of objects.

A streaming parser such as ijson ends at the first error. Here the elements of an array are separated by counting
brackets outside strings, so that an element that is not JSON is one bad row, and those after it are still read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final, TextIO

from graftwork.adapters.errors import InvalidRequest
from graftwork.training.data.read import lines
from graftwork.training.data.read.encodings import BOM
from graftwork.training.data.read.lines import Record, text_lines, too_long, unreadable
from graftwork.training.data.row import Unusable

_CHUNK: Final = 1 << 16
_SYNTAX = re.compile(r'["\\{}\[\],\n]')
_SPACE: Final = f" \t\r\n{BOM}"
_SHOWN_CHARS: Final = 20


def json_records(file: TextIO, name: str) -> Iterator[Record]:
    """Read the records of a JSON or JSON Lines file.

    Args:
        file: the file, opened so that all lines end in ``\\n``.
        name: the name of the file, for errors.

    Raises:
        InvalidRequest: while iterating, if anything follows the end of an array.
    """
    line = 1
    while (character := file.read(1)) and character in _SPACE:
        line += character == "\n"
    if character == "[":
        return _array(file, line, name)
    file.seek(0)
    return _lines(file)


def _lines(file: TextIO) -> Iterator[Record]:
    for line, text in enumerate(text_lines(file), start=1):
        if not text.strip():
            continue
        record = _json(text)
        if isinstance(record, Unusable) and BOM in text:
            # Two joined files, the first of which has no line end at its end.
            yield from ((line, _json(part)) for part in text.split(BOM) if part.strip())
        else:
            yield line, record


def _json(text: str) -> Any:
    if (problem := unreadable(text)) is not None:
        return problem
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return Unusable(f"not JSON: {error.msg} at column {error.colno}")
    except (RecursionError, ValueError) as error:  # ValueError: a number of thousands of digits
        return Unusable(f"not usable JSON: {error}")


def _array(file: TextIO, line: int, name: str) -> Iterator[Record]:
    """Yield the elements of an array, after its opening bracket."""
    element, first_line = "", line
    depth, in_string, is_too_long = 0, False, False
    skip = 0  # number of characters in the next chunk that belong to an escape in this one
    while chunk := file.read(_CHUNK):
        start, position, skip = 0, skip, 0
        while match := _SYNTAX.search(chunk, position):
            position = match.end()
            mark = match[0]
            if mark == "\n":
                line += 1
                if not in_string and depth == 0 and not (element + chunk[start:position]).strip():
                    element, start, first_line = "", position, line
            elif mark == "\\":
                if in_string:
                    position += 1
                    skip = max(position - len(chunk), 0)
            elif mark == '"':
                in_string = not in_string
            elif in_string:
                continue
            elif mark in "{[":
                depth += 1
            elif depth and mark in "}]":
                depth -= 1
            elif depth == 0 and mark in ",]":
                element += chunk[start : position - 1]
                if element.strip() or mark == ",":
                    yield first_line, too_long() if is_too_long else _json(element)
                if mark == "]":
                    _require_end(chunk[position:], file, line, name)
                    return
                element, start, first_line, is_too_long = "", position, line, False
        element += chunk[start:]
        if len(element) > lines.MAX_RECORD_CHARS:
            element, is_too_long = element[:1], True
    yield first_line, Unusable("the array does not end: its closing bracket is missing")


def _require_end(rest: str, file: TextIO, line: int, name: str) -> None:
    """Check that nothing follows the array, which ended on ``line``; it would be ignored silently.

    Raises:
        InvalidRequest: if something follows.
    """
    end = line
    while True:
        following = rest.lstrip(_SPACE)
        line += rest[: len(rest) - len(following)].count("\n")
        if following:
            shown = following[:_SHOWN_CHARS].splitlines()[0]
            raise InvalidRequest(
                f"{name}: the array ends on line {end}, and {shown!r} follows on line {line}. Put all rows "
                "into one array, or write one row a line, without an array.",
                param="data",
            )
        rest = file.read(_CHUNK)
        if not rest:
            return
