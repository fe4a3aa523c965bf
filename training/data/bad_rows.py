"""The error for data without a usable row."""

from __future__ import annotations

from collections.abc import Sequence

from graftwork.adapters.errors import InvalidRequest
from graftwork.training.data.row import (
    BadRow,
)


def no_usable_rows(name: str, bad: Sequence[BadRow]) -> InvalidRequest:
    """Return the error for a source without a usable row. Its message names the first bad rows."""
    if not bad:
        return InvalidRequest(f"{name} holds no rows.", param="data", code="no_usable_rows")
    return InvalidRequest(f"{name} holds no usable row ({first_problems(bad)}).", param="data", code="no_usable_rows")


def first_problems(bad: Sequence[BadRow]) -> str:
    """Describe the first three bad rows, for an error message: ``line 1: …; line 2: …; line 7: …; and 12 more``."""
    more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
    return "; ".join(str(row) for row in bad[:3]) + more
