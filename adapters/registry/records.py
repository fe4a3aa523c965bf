"""The registry's records: versions, what happened to them, and adapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

AliasAction = Literal["push", "promote", "rollback", "retire"]


@dataclass(frozen=True, kw_only=True)
class Version:
    """One pushed adapter folder. ``verified``: its config named the base; otherwise only the shapes fit."""

    name: str
    number: int
    digest: str
    base_digest: str
    verified: bool
    rank: int
    num_parameters: int
    num_bytes: int
    config: dict[str, Any]
    parent: int | None
    data_digest: str | None
    metadata: dict[str, Any]
    created_at: datetime
    retired_at: datetime | None = None

    @property
    def id(self) -> str:
        return f"{self.name}@{self.number}"


@dataclass(frozen=True, kw_only=True)
class AliasEvent:
    """One line of an adapter's history. ``alias`` is None where no alias moved: a push, a retirement."""

    id: int
    at: datetime
    action: AliasAction
    name: str
    alias: str | None
    from_version: int | None
    to_version: int | None
    actor: str
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter with everything that it has; ``aliases`` maps to version numbers, ``versions`` is in their order."""

    name: str
    created_at: datetime
    aliases: Mapping[str, int]
    versions: tuple[Version, ...]
