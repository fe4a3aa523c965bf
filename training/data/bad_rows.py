"""The refusal of data that leaves nothing to learn from, with its first problems in the message."""

from __future__ import annotations

from collections.abc import Sequence

from graftwork.adapters.errors import InvalidRequest
from graftwork.training.data.row import (
    BadRow,
)


def no_usable_rows(name: str, bad: Sequence[BadRow]) -> InvalidRequest:
    """The refusal of a source that leaves nothing to train on: its first problems are in the message."""
    if not bad:
        return InvalidRequest(f"{name} holds no rows.", param="data", code="no_usable_rows")
    return InvalidRequest(f"{name} holds no usable row ({first_problems(bad)}).", param="data", code="no_usable_rows")


def first_problems(bad: Sequence[BadRow]) -> str:
    more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
    return "; ".join(str(row) for row in bad[:3]) + more
