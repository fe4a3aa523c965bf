"""Which interactions are logged, and how long they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from typing_extensions import TypedDict


class LogPolicyObject(TypedDict):
    """``retention_days`` null: as long as by default. ``ask_feedback``: the share of the answers that are marked, so
    that their users are asked for feedback.
    """

    object: Literal["log_policy"]
    scope: Literal["adapter", "key"]
    subject: str
    log: bool
    retention_days: float | None
    ask_feedback: float | None
    actor: str
    updated_at: float


class LogDefaultObject(TypedDict):
    """What holds where no policy says otherwise. ``retention_days`` null: for good."""

    log: bool
    retention_days: float | None


class LogPolicyListObject(TypedDict):
    """All policies, and the default."""

    object: Literal["list"]
    data: Sequence[LogPolicyObject]
    has_more: bool
    default: LogDefaultObject
