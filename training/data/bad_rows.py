"""The refusal of data that leaves nothing to learn from, with its first problems in the message."""

from __future__ import annotations

from collections.abc import Sequence

from graftwork.adapters.errors import InvalidRequest
from graftwork.training.data.row import (
    BadRow,
)


def nothing_usable(name: str, bad: Sequence[BadRow]) -> InvalidRequest:
    """The refusal of a source that leaves nothing to train on: its first problems are in the message."""
    if not bad:
        return InvalidRequest(f"{name} holds no rows.", param="data", code="no_usable_rows")
    return InvalidRequest(f"{name} holds no usable row ({_first(bad)}).", param="data", code="no_usable_rows")


def _first(bad: Sequence[BadRow]) -> str:
    more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
    return "; ".join(str(row) for row in bad[:3]) + more
