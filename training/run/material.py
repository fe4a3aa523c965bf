"""The rows of a run: read from files or from a stored data set, cleaned and split."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from graftwork.training.data.kept import KeptRows
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
    """Rows that were read, cleaned and split.

    Attributes:
        label: name of the data, for people.
        sides: the rows of each split.
        report: the report of the data set.
        bad: the first rows that could not be used.
        kept: what was found out about the rows of files, so that they can be read again; None for a stored data set.
    """

    label: str
    sides: Mapping[SplitName, Sequence[Row]]
    report: DataReport
    bad: tuple[BadRow, ...]
    kept: KeptRows | None = None

    @property
    def held_out(self) -> tuple[Row, ...]:
        """The validation and test rows."""
        return (*self.sides["validation"], *self.sides["test"])

    @property
    def num_rows(self) -> int:
        """Number of rows in all splits."""
        return sum(map(len, self.sides.values()))


def load_material(
    data: Path | StoredDataSet,
    *,
    columns: Columns | None,
    format: str | None,
    share: float,
    clean_system: bool = False,
) -> Material:
    """Read the rows of a file, or of a stored data set.

    Args:
        data: a file, which is cleaned by the default policy; or a stored data set, which is used with its splits.
        columns: the columns of the file.
        format: the format of the file; detected if None.
        share: share of the file's rows that are held out for validation.
        clean_system: whether personal data in the file's system messages is masked, too.

    Raises:
        InvalidRequest: if the file cannot be read or has no usable row.
        GraftworkError: if the data set was changed on disk.
    """
    return (
        read_data_set(data)
        if isinstance(data, StoredDataSet)
        else read_files([data], columns=columns, format=format, share=share, clean_system=clean_system)
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
    kept: KeptRows | None = None,
    clean_system: bool = False,
) -> Material:
    """Read files, clean their rows by the default policy, and split them.

    Args:
        data: files of rows.
        validation: files of validation rows; if there are none, a share of ``data`` is held out.
        columns: the columns of all files.
        format: the format of all files; detected if None.
        share: share of the rows that are held out. Rows that are held out at a smaller share are so at a larger one.
        fewest: minimum number of held-out rows with a right answer. The share is increased to reach it, as long as at
            most half of the rows are held out.
        earlier: the split of each question in earlier data; see `prepare`.
        kept: what was found out when the same files were read before, which settles the split; see `prepare`.
        clean_system: whether personal data in system messages is masked, too.

    Raises:
        InvalidRequest: if a file cannot be read, or there is no usable row.
    """
    sources = file_sources(data, columns, format=format)
    for source in file_sources(validation, columns, format=format):
        sources.append(dataclasses.replace(source, split="validation"))

    def at(share: float) -> Material:
        policy = DataPolicy(clean_system=clean_system, shares=Shares(validation=share, test=0.0))
        with prepare(sources, policy, earlier=earlier, kept=kept) as prepared:
            return Material(
                label=" + ".join(path.name for path in data),
                sides={side: tuple(prepared.rows(side)) for side in SPLITS},
                report=prepared.report,
                bad=prepared.bad,
                kept=prepared.kept,
            )

    def too_few(found: Material) -> bool:
        return len(rows_for_method(found.held_out, "sft").rows) < fewest and 2 * len(found.held_out) < found.num_rows

    found = at(0.0 if validation else share)
    if validation or kept is not None or not too_few(found):
        return found
    # Near rows stay on one side, so that the number of held-out rows for a share is found by bisection.
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
"""Steps of the bisection: the share is found to 1/256."""


def read_data_set(data: StoredDataSet) -> Material:
    """Read a stored data set with its splits. Its report does not repeat what was left out when it was made.

    Raises:
        GraftworkError: if the data set was changed on disk.
    """
    data.verify()
    report = dataclasses.replace(data.report, fates={"kept": sum(data.num_rows.values())}, found=(), repaired=0)
    return Material(label=data.id, sides={side: tuple(data.rows(side)) for side in SPLITS}, report=report, bad=())
