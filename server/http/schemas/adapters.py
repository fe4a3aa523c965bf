"""Adapters, their versions and their history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from typing_extensions import TypedDict

from graftwork.server.http.schemas.keys import LimitsObject, StandingObject

Residency = Literal["device", "host", "store"]
"""Where an adapter's weights are."""


class VersionObject(TypedDict):
    """One immutable version, ``name@version``. ``load_ms`` is what it last took to bring it to the device."""

    object: Literal["adapter.version"]
    id: str
    name: str
    version: int
    digest: str
    base_digest: str | None
    verified: bool
    rank: int
    num_parameters: int
    num_bytes: int
    created_at: int
    parent: int | None
    data_digest: str | None
    peft_config: Mapping[str, Any]
    metadata: Mapping[str, Any]
    retired_at: int | None
    residency: Residency
    load_ms: float | None
    requests: int
    tokens: int


class PushedVersionObject(VersionObject):
    """What a push resulted in. ``warnings`` say what was taken and yet may not be what was meant."""

    warnings: Sequence[str]


class AdapterObject(TypedDict):
    """An adapter with its versions. ``residency`` is that of the live version."""

    object: Literal["adapter"]
    name: str
    created_at: int
    aliases: Mapping[str, int]
    versions: list[VersionObject]
    residency: Residency
    requests: int
    tokens: int


class AdapterLimitsObject(StandingObject):
    """The limits of an adapter, and what all keys together used of them."""

    object: Literal["adapter.limits"]
    adapter: str
    limits: LimitsObject


class AdapterEventObject(TypedDict):
    """One line of an adapter's append-only history."""

    object: Literal["adapter.event"]
    id: int
    at: float
    action: str
    name: str
    alias: str | None
    from_version: int | None
    to_version: int | None
    actor: str
    reason: str | None
