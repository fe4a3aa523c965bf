"""The bodies of ``POST /v1/messages`` and of ``count_tokens``, which become a chat."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator, model_validator

from graftwork.server.bodies import (
    Label,
    ModelName,
    StrictModel,
    Text,
    body_error,
    json_type,
    only_off,
    parse_value,
    reject_nul,
    short_repr,
    string_at,
)
from graftwork.server.openai.requests.chat import MAX_MESSAGES, ChatCompletionRequest
from graftwork.server.openai.requests.generation import INT32_MAX, INT64_MAX, MAX_STOP_CHARS, MAX_STOPS
from graftwork.server.openai.requests.structured_output import Schema
from graftwork.server.openai.requests.tools import MAX_TOOLS, FunctionName, only_functions


def _texts(where: str, content: Any) -> str:
    """A text, or a list of text blocks, as one text."""
    if isinstance(content, str):
        return reject_nul(content)
    return "\n".join(block["text"] for block in _blocks(where, content, ("text",)))


def _blocks(where: str, content: Any, types: Sequence[str]) -> list[dict[str, Any]]:
    if not isinstance(content, list):
        raise body_error("invalid_type", f"{where} must be a string or a list of blocks, not {json_type(content)}")
    for place, block in enumerate(content):
        kind = block.get("type") if isinstance(block, dict) else None
        if kind not in types:
            takes = " and ".join(types)
            raise body_error("unsupported_parameter", f"{where}[{place}] is of type {short_repr(kind)}, not {takes}")
        if kind == "text":
            block["text"] = string_at(f"{where}[{place}].text", block.get("text"))
    return content


def _messages(value: Any) -> list[dict[str, Any]]:
    """The conversation as messages of a chat."""
    if not isinstance(value, list):
        raise body_error("invalid_type", f"must be a list, not {json_type(value)}")
    if not 1 <= len(value) <= MAX_MESSAGES:
        raise body_error("invalid_value", f"must have 1 to {MAX_MESSAGES} messages, got {len(value)}")
    messages = []
    for place, message in enumerate(value):
        if not isinstance(message, dict) or not message.keys() <= {"role", "content"}:
            raise body_error("invalid_type", f"[{place}] must be an object with role and content")
        match message.get("role"):
            case "user":
                messages += _user(f"[{place}].content", message.get("content"))
            case "assistant":
                messages.append(_assistant(f"[{place}].content", message.get("content")))
            case other:
                raise body_error("invalid_value", f"[{place}].role must be user or assistant, got {short_repr(other)}")
    if value[-1]["role"] == "assistant":
        raise body_error("unsupported_parameter", "must end with the user: an answer cannot be begun for the model")
    return messages


def _user(where: str, content: Any) -> list[dict[str, Any]]:
    """Results of tools, and then what else the user says."""
    if isinstance(content, str):
        return [{"role": "user", "content": reject_nul(content)}]
    blocks = _blocks(where, content, ("text", "tool_result"))
    messages = [
        {
            "role": "tool",
            "tool_call_id": string_at(f"{where}[{place}].tool_use_id", block.get("tool_use_id")),
            "content": _texts(f"{where}[{place}].content", block.get("content") or ""),
        }
        for place, block in enumerate(blocks)
        if block["type"] == "tool_result"
    ]
    texts = [block["text"] for block in blocks if block["type"] == "text"]
    return [*messages, {"role": "user", "content": "\n".join(texts)}] if texts or not messages else messages


def _assistant(where: str, content: Any) -> dict[str, Any]:
    if isinstance(content, str):
        return {"role": "assistant", "content": reject_nul(content)}
    blocks = _blocks(where, content, ("text", "tool_use"))
    calls = []
    for place, block in enumerate(blocks):
        if block["type"] == "tool_use":
            arguments = block.get("input")
            if not isinstance(arguments, dict):
                raise body_error(
                    "invalid_type", f"{where}[{place}].input must be an object, not {json_type(arguments)}"
                )
            name = string_at(f"{where}[{place}].name", block.get("name"))
            function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
            calls.append({"id": string_at(f"{where}[{place}].id", block.get("id")), "function": function})
    text = "\n".join(block["text"] for block in blocks if block["type"] == "text")
    return {"role": "assistant", "content": text, **({"tool_calls": calls} if calls else {})}


class AnthropicTool(StrictModel):
    """A tool that an answer may use."""

    name: FunctionName
    input_schema: Schema
    description: Text | None = None
    strict: bool | None = None
    type: Literal["custom"] | None = None
    # Hints that change no answer.
    cache_control: Any = None
    eager_input_streaming: bool | None = None
    input_examples: Any = None
    allowed_callers: Annotated[Any, only_off(["direct"], instead="leave it out")] = None
    defer_loading: Annotated[Any, only_off(False, instead="leave it out")] = None

    @model_validator(mode="before")
    @classmethod
    def _is_function(cls, value: Any) -> Any:
        return only_functions(value, "custom", None)

    def for_chat(self) -> dict[str, Any]:
        """The tool as chat completions have it."""
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": self.input_schema,
            "strict": self.strict,
        }
        return {"type": "function", "function": {key: value for key, value in function.items() if value is not None}}


class ToolChoice(StrictModel):
    """Anthropic's ``tool_choice``: ``any`` is a call of some tool, ``tool`` of the one that ``name`` says."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None

    def for_chat(self) -> Any:
        """The choice as chat completions have it."""
        if self.type == "tool":
            return {"type": "function", "function": {"name": self.name or ""}}
        return "required" if self.type == "any" else self.type


class OutputFormat(StrictModel):
    """A JSON schema for the answer."""

    type: Literal["json_schema"]
    schema_: Annotated[Schema, Field(alias="schema")]


class OutputConfig(StrictModel):
    """What the answer is to be like."""

    format: OutputFormat | None = None
    effort: Annotated[Any, only_off("medium", "high", instead="leave it out")] = None


class Thinking(StrictModel):
    """Of models that think apart, which are none here."""

    type: Annotated[Any, only_off("disabled", instead="this server's models do not think apart")]


class RequestMetadata(StrictModel):
    """Who asks."""

    user_id: Label | None = None


def _stops(value: list[str]) -> list[str]:
    if len(value) > MAX_STOPS or not all(1 <= len(stop) <= MAX_STOP_CHARS for stop in value):
        raise body_error("invalid_value", f"takes at most {MAX_STOPS} strings of 1 to {MAX_STOP_CHARS} characters")
    return value


class CountTokensRequest(StrictModel):
    """The body of ``POST /v1/messages/count_tokens``."""

    model: ModelName
    messages: Annotated[list[dict[str, Any]], PlainValidator(_messages, json_schema_input_type=list[dict[str, Any]])]
    system: Annotated[
        str | None,
        PlainValidator(
            lambda value: None if value is None else _texts("", value),
            json_schema_input_type=str | list[dict[str, Any]] | None,
        ),
    ] = None
    tools: Annotated[list[AnthropicTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    output_config: OutputConfig | None = None
    thinking: Thinking | None = None
    cache_control: Any = None  # a hint that changes no answer

    def chat(self) -> ChatCompletionRequest:
        """The chat that this becomes.

        Raises:
            InvalidRequest: Its parts do not fit together.
        """
        return parse_value(ChatCompletionRequest, {k: v for k, v in self._fields().items() if v is not None})

    def _fields(self) -> dict[str, Any]:
        system = [] if not self.system else [{"role": "system", "content": self.system}]
        format = self.output_config.format if self.output_config is not None else None
        choice = self.tool_choice
        return {
            "model": self.model,
            "messages": [*system, *self.messages],
            "tools": [tool.for_chat() for tool in self.tools] if self.tools else None,
            "tool_choice": None if choice is None else choice.for_chat(),
            "parallel_tool_calls": False if choice is not None and choice.disable_parallel_tool_use else None,
            "response_format": None if format is None else _response_format(format.schema_),
        }


def _response_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "output", "schema": schema}}


class MessagesRequest(CountTokensRequest):
    """The body of ``POST /v1/messages``."""

    max_tokens: Annotated[int, Field(ge=1, le=INT64_MAX)]
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=INT32_MAX)] | None = None
    stop_sequences: Annotated[list[str], AfterValidator(_stops)] | None = None
    metadata: RequestMetadata | None = None
    # Accepted at the value that means what happens anyway.
    service_tier: Annotated[Any, only_off("auto", "standard_only", instead="there is one tier; leave it out")] = None
    speed: Annotated[Any, only_off("standard", instead="there is one speed; leave it out")] = None
    container: Annotated[Any, only_off(instead="leave it out")] = None
    context_management: Annotated[Any, only_off(instead="leave it out")] = None
    mcp_servers: Annotated[Any, only_off([], instead="call them yourself, as tools")] = None

    def _fields(self) -> dict[str, Any]:
        return {
            **super()._fields(),
            "max_tokens": self.max_tokens,
            "stream": self.stream,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "stop": self.stop_sequences or None,
            "user": None if self.metadata is None else self.metadata.user_id,
        }
