"""Logged requests and answers, and the erasure of a user's data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from graftwork.clients.types.feedback import Feedback
from graftwork.clients.types.generation import ToolCall, Usage


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggedCompletion:
    """A logged choice of an answer; ``finish_reason`` is None if it was interrupted."""

    index: int
    text: str
    finish_reason: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Timings:
    """Times since a request's admission, in milliseconds: until it was scheduled, to its first token, to its end."""

    queue_ms: float | None = None
    first_token_ms: float | None = None
    total_ms: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Interaction:
    """A logged request and its answers. ``status`` is ok, error or cancelled; either ``messages`` or ``prompt`` is set.

    Both are what the model saw. Where the system message of an experiment's arm comes first, ``replaced`` is what came
    first before: one message, or none; else it is None. ``feedback`` is set by ``get`` only, and is empty in lists.
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
    tools: tuple[Mapping[str, Any], ...] = ()
    replaced: tuple[Mapping[str, Any], ...] | None = None
    prompt: tuple[Any, ...] | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    user: str | None = None
    metadata: Mapping[str, str] | None = None
    experiment: str | None = None
    arm: str | None = None
    probability: float | None = None
    unit: str | None = None
    episode: str | None = None
    key_id: str | None = None
    feedback: tuple[Feedback, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ErasureResult:
    """The result of an erasure: the number of erased interactions, and of feedback whose texts were erased.

    ``learned_from`` are the versions that were trained on any of it; ``continued`` are versions that were not, but were
    trained from one that was.
    """

    interactions: int
    feedback: int
    learned_from: tuple[str, ...] = ()
    continued: tuple[str, ...] = ()
