"""A temporary file of rows, used while a data set is made."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from graftwork.training.data.row import (
    Row,
)


@dataclass(kw_only=True)
class RowSpool:
    """A file of rows that is written once. Iterating over the spool reads the rows in the order of writing, as often
    as needed.

    Attributes:
        path: the file.
        num: number of rows written.
    """

    path: Path
    num: int = 0

    @contextmanager
    def writing(self) -> Iterator[Callable[[Row], None]]:
        """Open the file for the block and yield the function that appends a row."""
        with self.path.open("w", encoding="utf-8") as file:

            def write(row: Row) -> None:
                file.write(json.dumps(row.to_json(), ensure_ascii=False))
                file.write("\n")
                self.num += 1

            yield write

    def __iter__(self) -> Iterator[Row]:
        with self.path.open(encoding="utf-8") as file:
            for line in file:
                yield Row.from_json(json.loads(line))
