"""What cleaning and splitting found out about each row that it kept, without any text: so that the same rows can be
read again later, and need not be cleaned and compared again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from graftwork.training.data.row import SPLITS, SplitName


class KeptRow(NamedTuple):
    """One row, by 64-bit hashes.

    Attributes:
        raw: `Row.raw_key` before cleaning.
        same: `Row.same_key` after it.
        question: `Row.question_key` after it.
        changed: whether cleaning changed it.
    """

    raw: int
    same: int
    question: int
    changed: bool


@dataclass(frozen=True, kw_only=True)
class KeptRows:
    """The rows that were kept, by split."""

    sides: Mapping[SplitName, Sequence[KeptRow]]

    def by_raw_key(self) -> dict[int, tuple[SplitName, KeptRow]]:
        """Return the split of each row and the row, by `Row.raw_key`."""
        return {row.raw: (side, row) for side, rows in self.sides.items() for row in rows}

    def to_json(self) -> dict[str, Any]:
        """Return the rows in JSON's types; `from_json` is the inverse."""
        return {side: list(map(list, rows)) for side, rows in self.sides.items()}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> KeptRows:
        """Build them from what `to_json` returned.

        Raises:
            KeyError, TypeError: if the fields are not those of `to_json`.
        """
        return cls(sides={side: [KeptRow(*row) for row in fields[side]] for side in SPLITS})
