"""Sources of rows: files, whose format is detected, and records in memory.

Every row, and every row that cannot be used, carries the name of its source and its line.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from graftwork.adapters.errors import InvalidRequest
from graftwork.training.data.read import feedback
from graftwork.training.data.read.columns import Columns
from graftwork.training.data.read.encodings import open_text, require_utf8
from graftwork.training.data.read.formats import FORMATS, answer_columns, convert, known_formats, recognise
from graftwork.training.data.read.json_records import json_records
from graftwork.training.data.read.lines import Record
from graftwork.training.data.read.passages import passages
from graftwork.training.data.read.tables import table_records
from graftwork.training.data.row import BadRow, Row, SplitName, Unusable

DELIMITERS: Final = {".csv": ",", ".tsv": "\t"}
JSON_FILES: Final = frozenset({".jsonl", ".ndjson", ".json"})
TEXT_FILES: Final = frozenset({".txt", ".md"})

FEEDBACK: Final = "feedback"
FORMAT_NAMES: Final = (*FORMATS, FEEDBACK)


@dataclass(kw_only=True)
class Source:
    """A source of rows, which can be read several times.

    Attributes:
        name: name for people.
        open: returns an iterator over the records, from the start each time.
        columns: the columns of question and answer.
        format: the format of all records; None detects the format of each record.
        split: the split that all rows are assigned to.
        digest: ``sha256:…`` of the file; None for records in memory.
        others: further files of the same logged answers and feedback.
        formats: number of rows by detected format, while and after `rows` is read.
        mapped: the columns that were detected for question and answer.
    """

    name: str
    open: Callable[[], Iterator[Record]]
    columns: Columns = field(default_factory=Columns)
    format: str | None = None
    split: SplitName | None = None
    digest: str | None = None
    others: tuple[Source, ...] = ()
    formats: Counter[str] = field(default_factory=Counter)
    mapped: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The names of all files of the source."""
        return " + ".join(source.name for source in (self, *self.others))

    def rows(self) -> Iterator[Row | BadRow]:
        """Yield rows and bad rows in the order of the source.

        Raises:
            InvalidRequest: while iterating, if the source as a whole cannot be read.
        """
        self.formats.clear()
        if self.is_feedback():
            files = [(source.name, source.open()) for source in (self, *self.others)]
            for row in feedback.rows(files):
                self.formats[FEEDBACK] += isinstance(row, Row)
                yield self._with_split(row) if isinstance(row, Row) else row
            return
        for line, record in self.open():
            try:
                yield self._row(line, record)
            except Unusable as problem:
                yield problem.bad_row(self.name, line)

    def is_feedback(self) -> bool:
        """Whether the source holds logged answers or feedback, by its format or its first readable record."""
        if self.format is not None:
            return self.format == FEEDBACK
        head = (record for _, record in itertools.islice(self.open(), 20) if not isinstance(record, Unusable))
        return feedback.is_feedback(next(head, None))

    def _row(self, line: int, record: Any) -> Row:
        if isinstance(record, Unusable):
            raise record
        if not isinstance(record, dict):
            raise Unusable("not a JSON object")
        format = recognise(record.keys(), self.columns) if self.format is None else FORMATS[self.format]
        if format is None:
            raise Unusable(
                f"no known format: {_fields_of(record)}. Name the columns with --prompt-column and --completion-column"
            )
        row = convert(format, record, self.columns)
        if format.name not in self.formats:
            self.mapped = _mapped(record, self.columns, format.name) or self.mapped
        self.formats[format.name] += 1
        return self._with_split(replace(row, source=self.name, line=line))

    def _with_split(self, row: Row) -> Row:
        return row if self.split is None else replace(row, split=self.split)


def file_source(
    path: Path, columns: Columns | None = None, *, format: str | None = None, split: SplitName | None = None
) -> Source:
    """Return the source for a file: ``.jsonl``, ``.ndjson``, ``.json``, ``.csv``, ``.tsv``, ``.txt`` or ``.md``.

    The encoding is UTF-8, or UTF-16 or UTF-32 where the first bytes tell so.

    Args:
        path: the file.
        columns: the columns of question and answer; detected by their usual names if None.
        format: the name of a format in `FORMAT_NAMES`; detected for each record if None.
        split: the split that all rows are assigned to.

    Raises:
        InvalidRequest: if the file cannot be read, is of another type, or is a table without the columns.
    """
    columns = columns or Columns()
    if format is not None and format not in FORMAT_NAMES:
        raise InvalidRequest(f"{format!r} is no format: choose {', '.join(FORMAT_NAMES)}.", param="format")
    suffix = path.suffix.lower()
    if suffix not in JSON_FILES | DELIMITERS.keys() | TEXT_FILES:
        raise InvalidRequest(
            f"{path.name} is none of .jsonl, .json, .csv, .tsv, .txt and .md. Rows look like one of these: "
            f"{known_formats()}; or are a table with a header, or plain text.",
            param="data",
        )

    name = path.name.encode("utf-8", "replace").decode()

    def records() -> Iterator[Record]:
        # Strings in JSON have no literal line ends, so that these can be normalised. In tables and texts they are kept.
        with open_text(path, newline=None if suffix in JSON_FILES else "") as file:
            if suffix in JSON_FILES:
                yield from json_records(file, name)
            elif suffix in DELIMITERS:
                yield from table_records(file, DELIMITERS[suffix])
            else:
                yield from passages(file)

    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        require_utf8(path)
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror or error}.", param="data") from error
    if suffix in DELIMITERS:
        _check_header(records(), columns, format)
    return Source(name=name, open=records, columns=columns, format=format, split=split, digest=f"sha256:{digest}")


def file_sources(paths: Sequence[Path], columns: Columns | None = None, *, format: str | None = None) -> list[Source]:
    """Return the sources for several files. Files of logged answers and of feedback become one source, since feedback
    in one file may be about answers in another. Arguments and errors as for `file_source`."""
    sources = [file_source(path, columns, format=format) for path in paths]
    about_answers = [source for source in sources if source.is_feedback()]
    if len(about_answers) < 2:
        return sources
    digests = "".join(source.digest or "" for source in about_answers)
    joined = replace(
        about_answers[0],
        others=tuple(about_answers[1:]),
        digest=f"sha256:{hashlib.sha256(digests.encode()).hexdigest()}",
    )
    return [*(source for source in sources if source not in about_answers), joined]


def record_source(
    name: str, records: Iterable[Mapping[str, Any]], *, columns: Columns | None = None, format: str | None = None
) -> Source:
    """Return the source for records in memory. Their lines are numbered from 1."""
    copies = [dict(record) for record in records]
    return Source(name=name, open=lambda: enumerate(copies, start=1), columns=columns or Columns(), format=format)


def _check_header(records: Iterator[Record], columns: Columns, format: str | None) -> None:
    """Check that a table has the columns. A table with a header alone passes, since it has no record to check.

    Raises:
        InvalidRequest: if a column is missing, or question and answer are not recognised.
    """
    fields = next((record for _, record in records if isinstance(record, dict)), None)
    if fields is None:
        return
    wanted = {*columns.fields(), *filter(None, (columns.completion, columns.user, columns.split))}
    missing = sorted(wanted - fields.keys())
    if missing:
        raise InvalidRequest(
            f"The header has no column {', '.join(map(repr, missing))}; it has {', '.join(map(repr, fields))}. Name "
            "the columns with --prompt-column and --completion-column.",
            param="data",
        )
    if format is None and recognise(fields.keys(), columns) is None:
        raise InvalidRequest(
            f"Nothing in the header says which columns are the question and the answer; it has "
            f"{', '.join(map(repr, fields))}. Name them with --prompt-column and --completion-column.",
            param="data",
        )


def _mapped(record: Mapping[str, Any], columns: Columns, format: str) -> tuple[str, ...]:
    """Return the columns of question and answer where they are not called ``prompt`` and ``completion``."""
    found = answer_columns(format, record.keys(), columns)
    if found is None or found == (("prompt",), "completion"):
        return ()
    return (*found[0], found[1])


def _fields_of(record: Mapping[str, Any]) -> str:
    names = [repr(name[:40]) for name in itertools.islice(record, 8)]
    return f"the fields are {', '.join(names)}" if names else "there are no fields"
