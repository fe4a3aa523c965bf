"""Logged requests and answers, and the erasure of a user's data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from graftwork.clients.types.feedback import Feedback
from graftwork.clients.types.generation import Usage


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggedCompletion:
    """One of a request's answers, as it was logged; ``finish_reason`` is ``None`` where it was broken off."""

    index: int
    text: str
    finish_reason: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Timings:
    """Milliseconds from a request's admission: until the engine took it up, to its first token, to its end."""

    queue_ms: float | None = None
    first_token_ms: float | None = None
    total_ms: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Interaction:
    """A logged request and its answers. ``status``: ok, error, cancelled. Either ``messages`` or ``prompt`` was asked.

    ``feedback`` is there where one interaction was asked for.
    """

    id: str
    created_at: datetime
    model: str
    base: str
    adapter: str
    status: str
    completions: tuple[LoggedCompletion, ...]
    usage: Usage
    timings: Timings
    error: str | None = None
    messages: tuple[Mapping[str, Any], ...] | None = None
    prompt: tuple[Any, ...] | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    user: str | None = None
    metadata: Mapping[str, str] | None = None
    experiment: str | None = None
    arm: str | None = None
    probability: float | None = None
    unit: str | None = None
    key_id: str | None = None
    feedback: tuple[Feedback, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ErasureResult:
    """What was erased of a user: interactions, and feedback that lost its words. ``learned_from`` are the versions that
    were trained on any of it, ``continued`` those that were not, but continue one that was."""

    interactions: int
    feedback: int
    learned_from: tuple[str, ...] = ()
    continued: tuple[str, ...] = ()
