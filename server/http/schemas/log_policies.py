"""Which interactions are logged, and how long they are kept."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict

from graftwork.server.http.schemas.lists import ListObject


class LogPolicyObject(TypedDict):
    """``retention_days`` null: as long as by default."""

    object: Literal["log_policy"]
    scope: Literal["adapter", "key"]
    subject: str
    log: bool
    retention_days: float | None
    actor: str
    updated_at: float


class LogDefaultObject(TypedDict):
    """What holds where no policy says otherwise. ``retention_days`` null: for good."""

    log: bool
    retention_days: float | None


class LogPolicyListObject(ListObject[LogPolicyObject]):
    """All policies, and the default."""

    default: LogDefaultObject
