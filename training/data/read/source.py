"""Where rows come from: a file whose format is recognised by itself, or records that somebody holds in memory.

Every row knows its source and line; so does every one that could not be used.
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
from graftwork.training.data.read.formats import FORMATS, convert, known_formats, question_and_answer, recognise
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
    """Rows to come. ``formats`` counts what was recognised so far, ``mapped`` the columns that were found.

    Attributes:
        name: for people.
        open: gives the records, from the start each time.
        columns: where to find question and answer.
        format: the only one that is read; None recognises each record's.
        split: the side that all rows are put on.
        digest: ``sha256:…`` of the file; None for records in memory.
        others: further files of the same logged answers and feedback.
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
        """The names of all its files."""
        return " + ".join(source.name for source in (self, *self.others))

    def rows(self) -> Iterator[Row | BadRow]:
        """Rows and bad rows in the order of the source. Raises InvalidRequest when it cannot be read at all."""
        self.formats.clear()
        if self.is_feedback():
            files = [(source.name, source.open()) for source in (self, *self.others)]
            for row in feedback.rows(files):
                self.formats[FEEDBACK] += isinstance(row, Row)
                yield self._placed(row) if isinstance(row, Row) else row
            return
        for line, record in self.open():
            try:
                yield self._row(line, record)
            except Unusable as problem:
                yield problem.bad_row(self.name, line)

    def is_feedback(self) -> bool:
        """Whether it holds logged answers or feedback: the first record that can be read tells."""
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
        return self._placed(replace(row, source=self.name, line=line))

    def _placed(self, row: Row) -> Row:
        return row if self.split is None else replace(row, split=self.split)


def file_source(
    path: Path, columns: Columns | None = None, *, format: str | None = None, split: SplitName | None = None
) -> Source:
    """A file in UTF-8, or in UTF-16 or UTF-32 that begins as such: ``.jsonl``, ``.ndjson`` or ``.json``, ``.csv`` or
    ``.tsv``, ``.txt`` or ``.md``.

    Raises InvalidRequest when it cannot be read, is none of these, or is a table without the columns.
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
        # JSON has no line ends in texts: they may all become one kind. In tables and texts they stay.
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
    """Several files, as ``file_source`` reads them; logged answers and what was said of them become one source,
    whichever files they stand in."""
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
    """Records in memory, numbered from 1; feedback and the answers it is about, for example."""
    kept = [dict(record) for record in records]
    return Source(name=name, open=lambda: enumerate(kept, start=1), columns=columns or Columns(), format=format)


def _check_header(records: Iterator[Record], columns: Columns, format: str | None) -> None:
    """The header is only seen with the first row below it; a table of a header alone is an empty one."""
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
    """The question's and the answer's column where they are not trainers' own names."""
    if format not in ("completion", "kto", "scored"):
        return ()
    found = question_and_answer(record.keys() - {"label", "score"}, columns) or question_and_answer(
        record.keys(), columns
    )
    if found is None or found == (("prompt",), "completion"):
        return ()
    return (*found[0], found[1])


def _fields_of(record: Mapping[str, Any]) -> str:
    names = [repr(name[:40]) for name in itertools.islice(record, 8)]
    return f"the fields are {', '.join(names)}" if names else "there are no fields"
