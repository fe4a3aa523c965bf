"""Windows that fit a metric: how long a unit must be watched, from how late feedback came so far."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, Connection, select

from graftwork.adapters.experiments.metrics import METADATA_PREFIX, Metric
from graftwork.adapters.feedback.feedback import feedback_table

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0

PER_REQUEST_SECONDS: Final = 5 * MINUTE
"""The window of a metric that a request decides by itself: long enough for its answer to end."""

UNKNOWN_SECONDS: Final = HOUR
"""The window of a metric from feedback while there is too little feedback to measure."""

MIN_JUDGEMENTS: Final = 20
"""Fewer do not say how late feedback comes."""

MAX_JUDGEMENTS: Final = 2000
"""The newest ones are measured."""

COVERED: Final = 0.95
"""The share of the feedback so far that a suggested window would have waited for."""

LEAST_COVERED: Final = 0.8
"""A window that would have missed more than the rest of the feedback is too short."""

FAR_LONGER: Final = 10
"""A window of this many suggested ones is too long."""

_STEPS: Final = (
    *(minutes * MINUTE for minutes in (1, 2, 5, 10, 15, 30)),
    *(hours * HOUR for hours in (1, 2, 4, 8, 12)),
    *(days * DAY for days in (1, 2, 3, 5, 7, 14, 30)),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SuggestedWindow:
    """A window that fits.

    Attributes:
        seconds: How long it is.
        is_per_request: Whether a request decides the metric by itself.
        delays: Of the feedback that it was measured from, in seconds after the answers, ascending; empty: of none.
    """

    seconds: float
    is_per_request: bool = False
    delays: tuple[float, ...] = ()

    def warning(self, seconds: float) -> str | None:
        """What is wrong with a window of so many seconds; ``None``: nothing that is known."""
        suggestion = f"a window of {in_words(self.seconds)} fits (window_seconds {self.seconds:g})"
        is_long = seconds >= FAR_LONGER * self.seconds
        if self.delays and (covered := bisect_right(self.delays, seconds) / len(self.delays)) < LEAST_COVERED:
            return (
                f"the window of {in_words(seconds)} is short: {1 - covered:.0%} of the last {len(self.delays)} "
                f"judgements came later after their answer, and would not count; {suggestion}"
            )
        if self.delays and is_long:
            return (
                f"the window of {in_words(seconds)} is long: of the last {len(self.delays)} judgements {COVERED:.0%} "
                f"came within {in_words(self.seconds)}, and no unit counts before its window has ended; {suggestion}"
            )
        if self.is_per_request and is_long:
            return (
                f"the window of {in_words(seconds)} is long for what an answer decides by itself, and no unit counts "
                f"before its window has ended; {suggestion}"
            )
        return None


def suggest_window(connection: Connection, adapter: str, metric: Metric) -> SuggestedWindow:
    """The window that fits a metric of an adapter.

    Of metrics that requests decide it is some minutes. Of others it is the time within which most of the adapter's
    latest feedback of that kind came, or an hour while there is too little.
    """
    if metric.is_per_request:
        return SuggestedWindow(seconds=PER_REQUEST_SECONDS, is_per_request=True)
    delays = _delays(connection, adapter, metric)
    if len(delays) < MIN_JUDGEMENTS:
        return SuggestedWindow(seconds=UNKNOWN_SECONDS)
    needed = delays[math.ceil(COVERED * len(delays)) - 1]
    return SuggestedWindow(seconds=next((step for step in _STEPS if step >= needed), _STEPS[-1]), delays=delays)


def in_words(seconds: float) -> str:
    """A duration: ``90 s``, ``15 min``, ``4 h``, ``3 days``."""
    for unit, name in ((DAY, "days"), (HOUR, "h"), (MINUTE, "min")):
        if seconds >= 2 * unit or seconds == unit:
            return f"{seconds / unit:.3g} {'day' if seconds == unit == DAY else name}"
    return f"{seconds:.3g} s"


def _delays(connection: Connection, adapter: str, metric: Metric) -> tuple[float, ...]:
    """How late the latest feedback of the metric's kind came, in seconds, ascending."""
    table = feedback_table.c
    query = select(table.at, table.interaction_at, table.metadata).where(table.adapter == adapter)
    rows = connection.execute(query.where(*_said(metric)).order_by(table.id.desc()).limit(MAX_JUDGEMENTS))
    key = metric.name.removeprefix(METADATA_PREFIX) if metric.name.startswith(METADATA_PREFIX) else None
    said = (row for row in rows if key is None or key in (row.metadata or {}))
    return tuple(sorted(max((row.at - row.interaction_at).total_seconds(), 0.0) for row in said))


def _said(metric: Metric) -> list[ColumnElement[bool]]:
    """The condition on feedback that the metric is read from."""
    if metric.name == "feedback_rate":
        return []
    kind = "metadata" if metric.name.startswith(METADATA_PREFIX) else metric.name.removesuffix("_rate")
    return [feedback_table.c[kind].is_not(None)]
