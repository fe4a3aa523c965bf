"""Which interactions are logged, and how long they are kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class LogPolicy:
    """Whether the interactions of an adapter or key are logged. ``retention_days`` is None for the default.

    ``ask_feedback`` is the share of its answers that are marked, so that their users are asked for feedback.
    """

    scope: str
    subject: str
    log: bool
    retention_days: float | None
    ask_feedback: float | None = None
    actor: str
    updated_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class LogDefault:
    """The default for adapters and keys without a policy. ``retention_days`` is None if nothing is deleted."""

    log: bool
    retention_days: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class LogPolicyList:
    """All log policies, and the default."""

    data: tuple[LogPolicy, ...]
    default: LogDefault

    def __iter__(self) -> Iterator[LogPolicy]:
        return iter(self.data)
