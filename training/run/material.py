"""The rows of a run: read from files or from a stored data set, cleaned and split."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from graftwork.training.data.pipeline import prepare
from graftwork.training.data.policy import DataPolicy
from graftwork.training.data.read.columns import Columns
from graftwork.training.data.read.source import file_sources
from graftwork.training.data.report.numbers import DataReport
from graftwork.training.data.row import SPLITS, BadRow, Row, SplitName
from graftwork.training.data.splits import Shares
from graftwork.training.data.store import StoredDataSet
from graftwork.training.methods.rows import rows_for_method


@dataclass(frozen=True, kw_only=True)
class Material:
    """Rows that were read, cleaned and split, and what became of the others."""

    label: str
    """What the data is called, for people."""
    sides: Mapping[SplitName, Sequence[Row]]
    report: DataReport
    bad: tuple[BadRow, ...]

    @property
    def held_out(self) -> tuple[Row, ...]:
        """What nothing is learned from."""
        return (*self.sides["validation"], *self.sides["test"])

    @property
    def num_rows(self) -> int:
        return sum(map(len, self.sides.values()))


def load_material(data: Path | StoredDataSet, *, columns: Columns | None, format: str | None, share: float) -> Material:
    """The rows of a file, cleaned by the default policy and split by ``share``; or of a data set that was kept, with
    the sides it has."""
    return (
        read_data_set(data)
        if isinstance(data, StoredDataSet)
        else read_files([data], columns=columns, format=format, share=share)
    )


def read_files(
    data: Sequence[Path],
    validation: Sequence[Path] = (),
    *,
    columns: Columns | None = None,
    format: str | None = None,
    share: float,
    fewest: int = 0,
    earlier: Mapping[int, SplitName] | None = None,
) -> Material:
    """Files, cleaned by the default policy. Held out are the rows of ``validation``, or ``share`` of all: more, but at
    most a half, until ``fewest`` of these say what is right. What is held out at a smaller share is so at a larger one.
    ``earlier``: on which side questions were before, as ``prepare`` takes it."""
    sources = file_sources(data, columns, format=format)
    for source in file_sources(validation, columns, format=format):
        sources.append(dataclasses.replace(source, split="validation"))

    def at(share: float) -> Material:
        policy = DataPolicy(shares=Shares(validation=share, test=0.0))
        with prepare(sources, policy, earlier=earlier) as prepared:
            return Material(
                label=" + ".join(path.name for path in data),
                sides={side: tuple(prepared.rows(side)) for side in SPLITS},
                report=prepared.report,
                bad=prepared.bad,
            )

    def too_few(found: Material) -> bool:
        return len(rows_for_method(found.held_out, "sft").rows) < fewest and 2 * len(found.held_out) < found.num_rows

    found = at(0.0 if validation else share)
    if validation or not too_few(found):
        return found
    # Rows that are near each other stay together: only trying tells how many a share holds out.
    enough: Material | None = None
    low, high = share, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        tried = at(middle)
        if too_few(tried):
            low, found = middle, tried
        else:
            high = middle
            enough = tried if 2 * len(tried.held_out) <= tried.num_rows else enough
    return enough or found


_HALVINGS: Final = 8
"""They find a share to a row in two hundred."""


def read_data_set(data: StoredDataSet) -> Material:
    """A data set that was kept, with the sides it has. What was wrong with its sources was said when it was made."""
    data.verify()
    report = dataclasses.replace(data.report, fates={"kept": sum(data.num_rows.values())}, found=(), repaired=0)
    return Material(label=data.id, sides={side: tuple(data.rows(side)) for side in SPLITS}, report=report, bad=())
