"""Rows on disk while a data set is made: written once, read in order as often as needed."""

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
    """Rows on disk, written once and read in order as often as needed."""

    path: Path
    num: int = 0

    @contextmanager
    def writing(self) -> Iterator[Callable[[Row], None]]:
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
