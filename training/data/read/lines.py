"""Bytes → records with line numbers, a piece at a time: JSON lines, JSON arrays, tables, texts.

What cannot be read is said where it stands and the next record follows. However long a file, a line or a quoted field
is, what is in memory is one record of `MAX_RECORD_BYTES` at most. Knows nothing of what records mean.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, Final

from graftwork.adapters.errors import InvalidRequest
from graftwork.training.data.row import Unusable

Record = tuple[int, Any]
"""The line (from 1) that a record begins on, and the record or the Unusable that says why it cannot be read."""

MAX_RECORD_BYTES: Final = 16 << 20
TEXT_CHARS: Final = 8_000
"""A text is cut into passages of about this length, at an empty line where there is one."""

_CHUNK: Final = 1 << 16
_SYNTAX = re.compile(rb'["\\{}\[\],\n]')


def json_records(file: BinaryIO) -> Iterator[Record]:
    """Of a file of one object a line, or of one array of objects."""
    start = file.read(len(codecs.BOM_UTF8))
    if start != codecs.BOM_UTF8:
        file.seek(0)
    begin, line = file.tell(), 1
    while (byte := file.read(1)).isspace():
        line += byte == b"\n"
    if byte == b"[":
        return _array(file, line)
    file.seek(begin)
    return _lines(file)


def table_records(file: BinaryIO, delimiter: str) -> Iterator[Record]:
    """Of a CSV or TSV file with a header: fields by column. A comma given as the delimiter may turn out to be a
    semicolon, as spreadsheets write it where commas are decimal points.

    Raises InvalidRequest when there is no header, or a column has no name of its own.
    """
    # What is not UTF-8 becomes half a surrogate pair here, which makes the row a bad one later.
    lines = (raw.decode("utf-8", "surrogateescape") for raw in _physical_lines(file))
    first = next(lines, "").removeprefix("\ufeff")
    if delimiter == "," and "," not in first and ";" in first:
        delimiter = ";"
    csv.field_size_limit(MAX_RECORD_BYTES)
    reader = csv.reader(_after(first, lines), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise InvalidRequest(f"The header is not a record of the table: {error}.", param="data") from None
    header = [name.strip() for name in header]
    if not any(header):
        raise InvalidRequest("The table is empty: its first line must name the columns.", param="data")
    twice = {name for name in header if header.count(name) > 1}
    if twice:
        raise InvalidRequest(
            f"The header names {', '.join(sorted(map(repr, twice)))} more than once: give each column a name of its "
            "own.",
            param="data",
        )
    return _table_rows(reader, header)


def passages(file: BinaryIO) -> Iterator[Record]:
    """Of a plain text: passages of about `TEXT_CHARS`, cut at empty lines or else at line ends."""
    lines: list[str] = []
    began, length = 1, 0
    for line, raw in enumerate(_physical_lines(file), start=1):
        try:
            text = raw.decode("utf-8-sig" if line == 1 else "utf-8")
        except UnicodeDecodeError as error:
            yield line, Unusable(f"not UTF-8 at byte {error.start + 1}: save the file as UTF-8")
            continue
        if not lines:
            began = line
        lines.append(text)
        length += len(text)
        if length >= TEXT_CHARS and (not text.strip() or length >= 2 * TEXT_CHARS):
            yield from _passage(began, lines)
            lines, length = [], 0
    yield from _passage(began, lines)


def _passage(began: int, lines: list[str]) -> Iterator[Record]:
    text = "".join(lines).strip()
    if text:
        yield began, {"text": text}


def _lines(file: BinaryIO) -> Iterator[Record]:
    for line, raw in enumerate(_physical_lines(file), start=1):
        if len(raw) > MAX_RECORD_BYTES:
            yield line, _too_long()
        elif raw.strip():
            yield line, _json(raw)


def _physical_lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines with their ends; of one that is too long only the beginning, so long that it is seen to be."""
    while raw := file.readline(MAX_RECORD_BYTES + 1):
        end = raw
        while len(end) > MAX_RECORD_BYTES and not end.endswith(b"\n"):
            end = file.readline(MAX_RECORD_BYTES + 1)
        yield raw


def _json(raw: bytes) -> Any:
    try:
        return json.loads(raw.decode())
    except UnicodeDecodeError as error:
        return Unusable(f"not UTF-8 at byte {error.start + 1}: save the file as UTF-8")
    except json.JSONDecodeError as error:
        return Unusable(f"not JSON: {error.msg} at column {error.colno}")
    except (RecursionError, ValueError) as error:  # ValueError: a number of thousands of digits
        return Unusable(f"not usable JSON: {error}")


def _array(file: BinaryIO, line: int) -> Iterator[Record]:
    """The elements of an array whose opening bracket was read. They are told apart by brackets and strings alone, so
    that one that is no JSON does not hide those that follow."""
    element, began = bytearray(), line
    depth, in_string, closed, dropping = 0, False, False, False
    skip = 0  # bytes of the next chunk that an escape has used up
    while chunk := file.read(_CHUNK):
        start, position, skip = 0, skip, 0
        while match := _SYNTAX.search(chunk, position):
            position = match.end()
            mark = match[0]
            if mark == b"\n":
                line += 1
                if not in_string and depth == 0 and not (element + chunk[start:position]).strip():
                    element, start, began = bytearray(), position, line
            elif mark == b"\\":
                if in_string:
                    position += 1
                    skip = max(position - len(chunk), 0)
            elif mark == b'"':
                in_string = not in_string
            elif in_string:
                continue
            elif mark in b"{[":
                depth += 1
            elif depth and mark in b"}]":
                depth -= 1
            elif depth == 0 and mark in b",]":
                element += chunk[start : position - 1]
                if element.strip() or mark == b",":
                    yield began, _too_long() if dropping else _json(bytes(element))
                element, start, began, dropping = bytearray(), position, line, False
                if mark == b"]":
                    closed = True
                    break
        if closed:
            break
        element += chunk[start:]
        if len(element) > MAX_RECORD_BYTES:
            element, dropping = element[:1], True
    if not closed:
        yield began, Unusable("the array does not end: its closing bracket is missing")


def _too_long() -> Unusable:
    return Unusable(f"longer than {MAX_RECORD_BYTES >> 20} MiB")


def _after(first: str, lines: Iterator[str]) -> Iterator[str]:
    yield first
    yield from lines


def _table_rows(reader: Any, header: list[str]) -> Iterator[Record]:
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, Unusable(f"not a record of the table: {error}")
            continue
        if len(values) == len(header):
            yield line, dict(zip(header, values, strict=True))
        elif values:
            yield line, Unusable(f"{len(values)} fields where the header has {len(header)}")
