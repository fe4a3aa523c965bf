"""How much rows count, so that frequent answers do not drown rare ones. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from graftwork.training.data.row import Row

Balance = Literal["none", "sqrt", "full"]
"""``full``: all classes count the same together. ``sqrt``: halfway there, which is safer where rare classes have few
rows. ``none``: every row counts the same."""


def class_weights(counts: Mapping[str, int], balance: Balance) -> dict[str, float]:
    """The weight of one row of each class; the mean over all rows is 1. ``counts`` are rows by class, above 0."""
    power = {"none": 0.0, "sqrt": 0.5, "full": 1.0}[balance]
    raw = {label: count**-power for label, count in counts.items()}
    total = sum(raw[label] * count for label, count in counts.items())
    num_rows = sum(counts.values())
    return {label: weight * num_rows / total for label, weight in raw.items()}


def balanced(rows: Sequence[Row], balance: Balance) -> list[Row]:
    """The rows with their class's weight on top of their own. The class is the answer."""
    weights = class_weights(Counter(row.answer for row in rows), balance)
    return [replace(row, weight=row.weight * weights[row.answer]) for row in rows]
