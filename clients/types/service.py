"""The state of the server, and its models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """The liveness of the server."""

    status: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Readiness:
    """The readiness of the server. ``status`` is ready, degraded, starting, draining or recovering.

    ``reason`` is what a degraded server, which answers requests, cannot do.
    """

    status: str
    base: Any = None
    reason: str | None = None

    @property
    def ready(self) -> bool:
        """Whether requests are served now."""
        return self.status in ("ready", "degraded")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerVersion:
    """The version of the server."""

    version: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """Something that can be named as ``model``: the base, an adapter, a version or an alias."""

    id: str
    created: datetime
    owned_by: str
    parent: str | None = None
    root: str | None = None
    max_model_len: int | None = None
    graftwork: Mapping[str, Any] = field(default_factory=dict)
