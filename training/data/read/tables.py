"""Records of tables: CSV and TSV with a header."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any, TextIO

from graftwork.adapters.errors import InvalidRequest
from graftwork.training.data.read import lines
from graftwork.training.data.read.lines import Record, text_lines, unreadable
from graftwork.training.data.row import Unusable


def table_records(file: TextIO, delimiter: str) -> Iterator[Record]:
    """Read the records of a CSV or TSV file with a header, as values by column.

    Args:
        file: the file, opened with its line ends unchanged.
        delimiter: the delimiter. For a comma, a semicolon is used instead if the header has semicolons and no commas,
            as spreadsheets write in countries with decimal commas.

    Raises:
        InvalidRequest: if there is no header, a column name is missing or repeated, or, while iterating, if a second
            header has the columns in another order.
    """
    rows = text_lines(file)
    first = next(rows, "")
    if (problem := unreadable(first)) is not None:
        raise InvalidRequest(f"The header is {problem}.", param="data")
    if delimiter == "," and "," not in first and ";" in first:
        delimiter = ";"
    csv.field_size_limit(lines.MAX_RECORD_CHARS)
    # Bytes that are not UTF-8 are lone surrogates, which make the row a bad one later.
    reader = csv.reader(_after(first, rows), delimiter=delimiter, strict=True)
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
    return _records(reader, header)


def _after(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _records(reader: Any, header: list[str]) -> Iterator[Record]:
    columns = sorted(header)
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, Unusable(f"not a record of the table: {error}")
            continue
        names = [value.strip() for value in values]
        if names == header:
            yield line, Unusable("the header over again, as where files are joined")
        elif len(header) > 1 and sorted(names) == columns:
            raise InvalidRequest(
                f"On line {line} another header begins, with its columns in another order: give the files one by one.",
                param="data",
            )
        elif len(values) == len(header):
            yield line, dict(zip(header, values, strict=True))
        elif values:
            yield line, Unusable(f"{len(values)} fields where the header has {len(header)}")
