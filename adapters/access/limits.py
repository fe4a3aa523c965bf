"""Limits of a key or an adapter: requests and tokens per minute, requests at once, tokens per day and month."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final

from graftwork.adapters.errors import InvalidRequest

MAX_LIMIT: Final = 10**15
"""Larger numbers mean a mistake; none is ``null``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Limits of one key, or of one adapter. ``None``: there is none.

    Attributes:
        requests_per_minute: Requests that begin in any 60 seconds.
        tokens_per_minute: Tokens of prompts and answers, of requests that begin in any 60 seconds.
        concurrent: Requests that are answered at once.
        tokens_per_day: Tokens in a day, which begins at midnight UTC.
        tokens_per_month: Tokens in a calendar month, in UTC.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None

    def __post_init__(self) -> None:
        for name, limit in self.to_json().items():
            if not 1 <= limit <= MAX_LIMIT:
                raise InvalidRequest(
                    f"limits.{name} is {limit}: use 1 to {MAX_LIMIT}, or null for no limit; to stop a key, revoke it",
                    param=f"limits.{name}",
                )

    def __bool__(self) -> bool:
        return bool(self.to_json())

    def to_json(self) -> dict[str, int]:
        """The limits that there are, by name."""
        return {name: limit for name in LIMIT_NAMES if (limit := getattr(self, name)) is not None}

    @classmethod
    def from_json(cls, stored: Mapping[str, int] | None) -> Limits:
        """The limits that ``to_json`` made this of."""
        return cls(**(stored or {}))


LIMIT_NAMES: Final = tuple(field.name for field in fields(Limits))

NO_LIMITS: Final = Limits()
