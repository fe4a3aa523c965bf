"""Logged requests and answers, and the erasure of a user's data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from graftwork.server.http.schemas.feedback import FeedbackObject
from graftwork.server.http.schemas.generation.chat import ToolCallObject


class LoggedCompletionObject(TypedDict):
    """One of a request's answers; ``finish_reason`` null: it was interrupted."""

    index: int
    text: str
    finish_reason: str | None
    tool_calls: NotRequired[Sequence[ToolCallObject]]


class LoggedUsageObject(TypedDict):
    """Tokens read and written for one request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TimingsObject(TypedDict):
    """Milliseconds from a request's admission to its first step in the engine, to its first token, and to its end."""

    queue_ms: float | None
    first_token_ms: float | None
    total_ms: float


class InteractionObject(TypedDict):
    """A logged request: ``messages`` or ``prompt``, as the model saw them. Where the system message of an experiment's
    arm stands first, ``replaced`` has what stood there. ``feedback`` comes with a single interaction only.
    """

    object: Literal["interaction"]
    id: str
    created_at: int
    model: str
    base: str
    adapter: str
    experiment: str | None
    arm: str | None
    probability: float | None
    unit: str | None
    episode: str | None
    status: str
    error: str | None
    messages: Sequence[Mapping[str, Any]] | None
    tools: NotRequired[Sequence[Mapping[str, Any]]]
    replaced: NotRequired[Sequence[Mapping[str, Any]]]
    prompt: Sequence[Any] | None
    sampling: Mapping[str, Any]
    completions: Sequence[LoggedCompletionObject]
    usage: LoggedUsageObject
    timings: TimingsObject
    user: str | None
    metadata: Mapping[str, str] | None
    key_id: str | None
    feedback: NotRequired[Sequence[FeedbackObject]]


class ErasureObject(TypedDict):
    """What was erased: interactions, and feedback whose texts were cleared. ``learned_from`` are the versions that were
    trained on any of it, ``continued`` those that were not, but continue one that was.
    """

    object: Literal["interactions.erasure"]
    interactions: int
    feedback: int
    learned_from: Sequence[str]
    continued: Sequence[str]
