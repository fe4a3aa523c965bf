"""OpenAI's responses, whole and as events. ``server/openai/answers/responses.py`` writes this JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from graftwork.server.http.schemas.generation.chat import OriginObject


class ResponseTextPart(TypedDict):
    """The text of a message."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[Mapping[str, Any]]


class ResponseMessageItem(TypedDict):
    """A message of a response."""

    id: str
    type: Literal["message"]
    status: Literal["in_progress", "completed", "incomplete"]
    role: Literal["assistant"]
    content: list[ResponseTextPart]


class ResponseFunctionCallItem(TypedDict):
    """A call of a function; its result goes back in a ``function_call_output`` with this ``call_id``."""

    id: str
    type: Literal["function_call"]
    status: Literal["in_progress", "completed", "incomplete"]
    call_id: str
    name: str
    arguments: str


class ResponseUsageObject(TypedDict):
    """Tokens of a response."""

    input_tokens: int
    input_tokens_details: Mapping[str, int]
    output_tokens: int
    output_tokens_details: Mapping[str, int]
    total_tokens: int


class ResponseObject(TypedDict):
    """A whole response, with the fields of its request."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed", "cancelled"]
    background: bool
    error: Mapping[str, str] | None
    incomplete_details: Mapping[str, str] | None
    model: str
    output: list[ResponseMessageItem | ResponseFunctionCallItem]
    reasoning: Mapping[str, None]
    service_tier: str
    truncation: str
    usage: ResponseUsageObject | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: Mapping[str, str]
    parallel_tool_calls: bool
    previous_response_id: str | None
    store: bool
    temperature: float
    text: Mapping[str, Any]
    tool_choice: Any
    tools: list[Mapping[str, Any]]
    top_logprobs: int
    top_p: float
    user: str | None
    graftwork: OriginObject


class ResponseEventObject(TypedDict):
    """An event of a stream; which members it has depends on its type."""

    type: str
    sequence_number: int
    response: NotRequired[ResponseObject]
    output_index: NotRequired[int]
    content_index: NotRequired[int]
    item_id: NotRequired[str]
    item: NotRequired[ResponseMessageItem | ResponseFunctionCallItem]
    part: NotRequired[ResponseTextPart]
    delta: NotRequired[str]
    text: NotRequired[str]
    name: NotRequired[str]
    arguments: NotRequired[str]
    logprobs: NotRequired[list[Mapping[str, Any]]]


class DeletedResponseObject(TypedDict):
    """What was deleted."""

    id: str
    object: Literal["response.deleted"]
    deleted: bool
