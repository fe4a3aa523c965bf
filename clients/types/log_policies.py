"""Which interactions are logged, and how long they are kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class LogPolicy:
    """Whether an adapter's or a key's interactions are logged. ``retention_days`` ``None``: as long as by default."""

    scope: str
    subject: str
    log: bool
    retention_days: float | None
    actor: str
    updated_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class LogDefault:
    """What holds where no policy says otherwise. ``retention_days`` ``None``: for good."""

    log: bool
    retention_days: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class LogPolicyList:
    """All policies, and the default."""

    data: tuple[LogPolicy, ...]
    default: LogDefault

    def __iter__(self) -> Iterator[LogPolicy]:
        return iter(self.data)
