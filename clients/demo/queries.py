"""Labelled queries: read from files, limited to some labels, and split so that none is used for two purposes."""

from __future__ import annotations

import csv
import json
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from graftwork.clients.errors import LocalFileError

TEXT_COLUMNS: Final = ("text", "query", "question", "prompt")
LABEL_COLUMNS: Final = ("label", "category", "intent", "class")

MIN_HELD_OUT: Final = 8
"""Minimum number of queries per label besides those that the first version is trained on."""


@dataclass(frozen=True, slots=True)
class Query:
    """A query and its label."""

    text: str
    label: str


@dataclass(frozen=True, kw_only=True)
class QuerySplit:
    """Disjoint sets of queries with all labels, shuffled.

    Attributes:
        labels: the labels.
        train: training data of the first version.
        test: held-out queries, for the accuracy of both versions.
        feedback: queries of users to the first version, whose corrections become training data.
        traffic: queries of users in the experiment.
    """

    labels: tuple[str, ...]
    train: tuple[Query, ...]
    test: tuple[Query, ...]
    feedback: tuple[Query, ...]
    traffic: tuple[Query, ...]


def read(*paths: Path) -> tuple[Query, ...]:
    """All queries of some files, each text once: CSV with a text and a label column, or JSON lines of chats.

    Raises:
        LocalFileError: if a file cannot be read, or has another format.
    """
    found: dict[str, Query] = {}
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise LocalFileError(f"{path} cannot be read: {error}") from error
        rows = _chats(path, lines) if path.suffix in (".jsonl", ".json") else _table(path, lines)
        for text, label in rows:
            query = Query(" ".join(text.split()), label.strip())
            if query.text and query.label:
                found.setdefault(query.text, query)
    return tuple(found.values())


def split_queries(
    queries: Sequence[Query], *, classes: int, first: int, judged: int, asked: int, traffic: int, seed: int
) -> QuerySplit:
    """Choose labels at random, and split their queries.

    Where a label has fewer queries than wanted, a quarter of those that the first version leaves are for testing, and
    half of the rest for feedback.

    Args:
        queries: the queries.
        classes: number of labels.
        first: training queries of each label.
        judged: maximum number of test queries of each label.
        asked: maximum number of feedback queries of each label.
        traffic: maximum number of traffic queries of each label.
        seed: of the choice and the shuffles.

    Raises:
        LocalFileError: if there are not enough queries.
    """
    by_label: dict[str, list[Query]] = defaultdict(list)
    for query in queries:
        by_label[query.label].append(query)
    enough = {label: some for label, some in by_label.items() if len(some) >= first + MIN_HELD_OUT}
    if len(enough) < classes:
        raise LocalFileError(
            f"{classes} labels of {first + MIN_HELD_OUT} queries each are needed, and the data has {len(enough)}: "
            "ask for fewer --classes or fewer --rows, or name another file with --data."
        )
    shuffle = random.Random(seed)
    labels = sorted(shuffle.sample(sorted(enough), classes))
    parts: tuple[list[Query], ...] = ([], [], [], [])
    for label in labels:
        some = enough[label]
        shuffle.shuffle(some)
        left = len(some) - first
        for_judging = min(judged, left // 4)
        for_asking = min(asked, (left - for_judging) // 2)
        start = 0
        for part, size in zip(parts, (first, for_judging, for_asking, traffic), strict=True):
            part += some[start : start + size]
            start += size
    for part in parts:
        shuffle.shuffle(part)
    return QuerySplit(
        labels=tuple(labels),
        train=tuple(parts[0]),
        test=tuple(parts[1]),
        feedback=tuple(parts[2]),
        traffic=tuple(parts[3]),
    )


def _table(path: Path, text: str) -> Iterator[tuple[str, str]]:
    reader = csv.DictReader(text.splitlines(keepends=True))
    names = reader.fieldnames or ()
    columns = [next((name for name in usual if name in names), None) for usual in (TEXT_COLUMNS, LABEL_COLUMNS)]
    if columns[0] is None or columns[1] is None:
        raise LocalFileError(
            f"{path} has the columns {', '.join(names) or 'none'}: a table needs one called {' or '.join(TEXT_COLUMNS)}"
            f" and one called {' or '.join(LABEL_COLUMNS)}."
        )
    for row in reader:
        yield row[columns[0]] or "", row[columns[1]] or ""


def _chats(path: Path, text: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        try:
            asked, answered = json.loads(line)["messages"][-2:]
            yield str(asked["content"]), str(answered["content"])
        except (ValueError, TypeError, KeyError) as error:
            raise LocalFileError(
                f'{path}, line {number} is no chat: it takes {{"messages": [..., a question, its answer]}}.'
            ) from error
