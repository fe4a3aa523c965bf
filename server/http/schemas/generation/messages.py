"""Anthropic's messages, whole and as events. ``server/anthropic/answer.py`` writes this JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from graftwork.server.http.schemas.generation.chat import OriginObject


class MessageTextBlock(TypedDict):
    """A text of a message."""

    type: Literal["text"]
    text: str


class ToolUseBlock(TypedDict):
    """A call of a tool; its result goes back in a ``tool_result`` with this id."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: Mapping[str, Any]


class MessageUsageObject(TypedDict):
    """Tokens of a message. Those of the prompt that were cached are counted apart from those that were not."""

    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: NotRequired[int]
    cache_read_input_tokens: NotRequired[int]


class MessageObject(TypedDict):
    """A whole message."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[MessageTextBlock | ToolUseBlock]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"] | None
    stop_sequence: str | None
    usage: MessageUsageObject
    graftwork: OriginObject


class MessageEventObject(TypedDict):
    """An event of a stream; which members it has depends on its type."""

    type: Literal[
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
        "error",
    ]
    message: NotRequired[MessageObject]
    index: NotRequired[int]
    content_block: NotRequired[MessageTextBlock | ToolUseBlock]
    delta: NotRequired[Mapping[str, Any]]
    usage: NotRequired[MessageUsageObject]
    error: NotRequired[Mapping[str, str]]


class CountTokensObject(TypedDict):
    """How many tokens a message's prompt has."""

    input_tokens: int


class AnthropicErrorDetails(TypedDict):
    """``message`` says what to do."""

    type: str
    message: str


class AnthropicErrorObject(TypedDict):
    """Every answer of Anthropic's routes but 2xx."""

    type: Literal["error"]
    error: AnthropicErrorDetails
