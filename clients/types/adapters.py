"""Adapters, their versions and their history."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from graftwork.clients.types.keys import Limits, UsageCounts


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """One immutable version of an adapter. ``id`` is ``name@version``; the digest identifies its files."""

    id: str
    name: str
    version: int
    digest: str
    base_digest: str | None
    verified: bool
    rank: int
    num_parameters: int
    num_bytes: int
    created_at: datetime
    parent: int | None = None
    data_digest: str | None = None
    peft_config: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    retired_at: datetime | None = None
    residency: str | None = None
    load_ms: float | None = None
    requests: int = 0
    tokens: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class PushedVersion(Version):
    """The version that a push resulted in.

    ``created`` is False if the same files had been pushed before. ``warnings`` say what was taken and yet may not be
    what was meant, such as a chat template that is not the base's.
    """

    created: bool
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """An adapter with its versions. ``residency`` is where the live version is: device, host or store."""

    name: str
    created_at: datetime
    aliases: Mapping[str, int]
    versions: tuple[Version, ...]
    residency: str | None = None
    requests: int = 0
    tokens: int = 0

    def aliases_of(self, version: int) -> tuple[str, ...]:
        """Return the aliases that point at a version, sorted."""
        return tuple(sorted(alias for alias, number in self.aliases.items() if number == version))


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterEvent:
    """An event of an adapter's append-only history. ``action`` is push, promote, rollback or retire."""

    id: int
    at: datetime
    action: str
    name: str
    alias: str | None
    from_version: int | None
    to_version: int | None
    actor: str
    reason: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterLimits:
    """The limits of an adapter, and what all keys together used: in the last 60 seconds, today, this month, and under
    way.
    """

    adapter: str
    limits: Limits
    minute: UsageCounts
    day: UsageCounts
    month: UsageCounts
    open: int
