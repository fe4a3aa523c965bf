"""Class weights, so that frequent answers do not dominate rare ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from graftwork.training.data.row import Row

Balance = Literal["none", "sqrt", "full"]
"""``full``: all classes have the same total weight (inverse frequency). ``sqrt``: inverse square root of the frequency,
which is safer where rare classes have few rows. ``none``: every row has the same weight."""


def class_weights(counts: Mapping[str, int], balance: Balance) -> dict[str, float]:
    """Compute the weight of a row of each class, such that the mean over all rows is 1.

    Args:
        counts: number of rows by class, each at least 1.
        balance: how strongly rare classes are raised.
    """
    power = {"none": 0.0, "sqrt": 0.5, "full": 1.0}[balance]
    raw = {label: count**-power for label, count in counts.items()}
    total = sum(raw[label] * count for label, count in counts.items())
    num_rows = sum(counts.values())
    return {label: weight * num_rows / total for label, weight in raw.items()}


def balanced(rows: Sequence[Row], balance: Balance) -> list[Row]:
    """Multiply the weight of each row by the weight of its class, which is its answer."""
    weights = class_weights(Counter(row.answer for row in rows), balance)
    return [replace(row, weight=row.weight * weights[row.answer]) for row in rows]
