"""The rows of a run: read from files or from a stored data set, cleaned and split."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from graftwork.training.data.kept import KeptRows
from graftwork.training.data.pipeline import prepare
from graftwork.training.data.policy import DataPolicy
from graftwork.training.data.read.columns import Columns
from graftwork.training.data.read.source import file_sources
from graftwork.training.data.report.numbers import DataReport, RowOutcome
from graftwork.training.data.row import SPLITS, BadRow, Row, SplitName, set_digest
from graftwork.training.data.splits import Shares
from graftwork.training.data.store import StoredDataSet


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

    def question_sides(self) -> dict[int, SplitName]:
        """The split of each question, by `Row.question_key`."""
        return {row.question_key(): side for side in SPLITS for row in self.sides[side]}

    def where(self, sides: Mapping[int, SplitName]) -> Material:
        """Return the rows without those whose question is known to be on another side."""
        kept = {
            side: tuple(row for row in rows if sides.get(row.question_key(), side) == side)
            for side, rows in self.sides.items()
        }
        return dataclasses.replace(self, sides=kept)

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
        else read_files(
            [data],
            columns=columns,
            format=format,
            shares=Shares(validation=share, test=0.0),
            clean_system=clean_system,
        )
    )


def read_files(
    data: Sequence[Path],
    validation: Sequence[Path] = (),
    *,
    columns: Columns | None = None,
    format: str | None = None,
    shares: Shares,
    earlier: Mapping[int, SplitName] | None = None,
    kept: KeptRows | None = None,
    clean_system: bool = False,
) -> Material:
    """Read files, clean their rows by the default policy, and split them.

    Args:
        data: files of rows.
        validation: files of validation rows; if there are none, rows of ``data`` are held out.
        columns: the columns of all files.
        format: the format of all files; detected if None.
        shares: shares of the rows that are held out.
        earlier: the split of each question in earlier data; see `prepare`.
        kept: what was found out when the same files were read before, which settles the split; see `prepare`.
        clean_system: whether personal data in system messages is masked, too.

    Raises:
        InvalidRequest: if a file cannot be read, or there is no usable row.
    """
    sources = file_sources(data, columns, format=format)
    for source in file_sources(validation, columns, format=format):
        sources.append(dataclasses.replace(source, split="validation"))
    policy = DataPolicy(clean_system=clean_system, shares=Shares(validation=0.0, test=0.0) if validation else shares)
    with prepare(sources, policy, earlier=earlier, kept=kept) as prepared:
        return Material(
            label=" + ".join(path.name for path in data),
            sides={side: tuple(prepared.rows(side)) for side in SPLITS},
            report=prepared.report,
            bad=prepared.bad,
            kept=prepared.kept,
        )


def read_data_set(data: StoredDataSet, *, earlier: Mapping[int, SplitName] | None = None) -> Material:
    """Read a stored data set with its splits. Its report does not repeat what was left out when it was made.

    Args:
        data: the data set.
        earlier: the split of each question in earlier data; rows on another side now are left out.

    Raises:
        GraftworkError: if the data set was changed on disk.
    """
    data.verify()
    known = earlier or {}
    sides = {
        side: tuple(row for row in data.rows(side) if known.get(row.question_key(), side) == side) for side in SPLITS
    }
    kept = sum(map(len, sides.values()))
    fates: dict[RowOutcome, int] = {"kept": kept, "held_out": sum(data.num_rows.values()) - kept}
    report = dataclasses.replace(
        data.report, fates={fate: number for fate, number in fates.items() if number}, found=(), repaired=0
    )
    return Material(label=data.id, sides=sides, report=report, bad=())


def merge(materials: Sequence[Material]) -> Material:
    """Put several materials together; of a question that is on different sides the first side counts.

    The report is that of the first one, with a digest of all.
    """
    if len(materials) == 1:
        return materials[0]
    side_of: dict[int, SplitName] = {}
    for material in materials:
        for key, side in material.question_sides().items():
            side_of.setdefault(key, side)
    digests = [bytes.fromhex(material.report.digest.removeprefix("sha256:")) for material in materials]
    return Material(
        label=" + ".join(material.label for material in materials),
        sides={
            side: tuple(
                row for material in materials for row in material.sides[side] if side_of[row.question_key()] == side
            )
            for side in SPLITS
        },
        report=dataclasses.replace(materials[0].report, digest=set_digest(digests)),
        bad=tuple(row for material in materials for row in material.bad),
    )
