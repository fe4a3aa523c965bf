"""The body of ``POST /v1/responses``, which becomes a chat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PlainValidator, PrivateAttr, model_validator

from graftwork.server.bodies import (
    Label,
    Metadata,
    ModelName,
    StrictModel,
    Text,
    body_error,
    field_error,
    json_type,
    only_off,
    parse_value,
    reject_nul,
    short_repr,
    string_at,
)
from graftwork.server.openai.requests.chat import MAX_MESSAGES, ChatCompletionRequest
from graftwork.server.openai.requests.generation import INT64_MAX, MAX_TOP_LOGPROBS
from graftwork.server.openai.requests.structured_output import JsonSchema
from graftwork.server.openai.requests.tools import MAX_TOOLS, Function, NamedTool, only_functions

#: What a response may be asked to include beside what it always has; it has none of the others' contents.
_LOGPROBS = "message.output_text.logprobs"
_INCLUDABLE = {
    _LOGPROBS,
    *("reasoning.encrypted_content", "file_search_call.results", "web_search_call.results"),
    *("web_search_call.action.sources", "message.input_image.image_url", "computer_call_output.output.image_url"),
    "code_interpreter_call.outputs",
}


def _input(value: Any) -> list[dict[str, Any]]:
    """The input as messages of a chat."""
    if isinstance(value, str):
        return [{"role": "user", "content": reject_nul(value)}]
    if not isinstance(value, list):
        raise body_error("invalid_type", f"must be a string or a list of items, not {json_type(value)}")
    if not 1 <= len(value) <= MAX_MESSAGES:
        raise body_error("invalid_value", f"must have 1 to {MAX_MESSAGES} items, got {len(value)}")
    messages: list[dict[str, Any]] = []
    for place, item in enumerate(value):
        message = _message(f"[{place}]", item)
        if "tool_calls" in message and messages and messages[-1]["role"] == "assistant":
            # A chat has the calls of an answer in the message with its text.
            messages[-1] = {**messages[-1], "tool_calls": [*messages[-1].get("tool_calls", ()), *message["tool_calls"]]}
        else:
            messages.append(message)
    return messages


def _message(where: str, item: Any) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise body_error("invalid_type", f"{where} must be an object, not {json_type(item)}")
    match item.get("type", "message"):
        case "message":
            role = item.get("role")
            if role not in ("user", "assistant", "system", "developer"):
                raise body_error(
                    "invalid_value",
                    f"{where}.role must be user, assistant, system or developer, got {short_repr(role)}",
                )
            return {"role": role, "content": _text(f"{where}.content", item.get("content"))}
        case "function_call":
            function = {name: _string(f"{where}.{name}", item.get(name)) for name in ("name", "arguments")}
            id = _string(f"{where}.call_id", item.get("call_id"))
            return {"role": "assistant", "content": "", "tool_calls": [{"id": id, "function": function}]}
        case "function_call_output":
            id = _string(f"{where}.call_id", item.get("call_id"))
            return {"role": "tool", "tool_call_id": id, "content": _text(f"{where}.output", item.get("output"))}
        case other:
            raise body_error(
                "unsupported_parameter",
                f"{where}.type is {short_repr(other)}: only message, function_call and function_call_output are read",
            )


def _string(where: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise body_error("invalid_type", f"{where} must be a text, not {json_type(value)}")
    return reject_nul(value)


def _text(where: str, content: Any) -> str | list[dict[str, str]]:
    if isinstance(content, str):
        return reject_nul(content)
    if not isinstance(content, list):
        raise body_error("invalid_type", f"{where} must be a string or a list of text parts, not {json_type(content)}")
    parts = []
    for place, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("input_text", "output_text", "text"):
            raise body_error(
                "unsupported_parameter", f"{where}[{place}] is of type {short_repr(kind)}: only text is supported"
            )
        parts.append({"type": "text", "text": string_at(f"{where}[{place}].text", part.get("text"))})
    return parts or ""


class ResponsesTool(Function):
    """A function: as in chat completions, but flat."""

    type: Literal["function"]

    @model_validator(mode="before")
    @classmethod
    def _is_function(cls, value: Any) -> Any:
        return only_functions(value)

    def for_chat(self) -> dict[str, Any]:
        """The tool as chat completions have it."""
        return {"type": "function", "function": self.model_dump(exclude_none=True, exclude={"type"})}


def _tool_choice(value: Any) -> Any:
    if value in (None, "none", "auto", "required"):
        return value
    if isinstance(value, dict) and value.get("type") == "function" and isinstance(value.get("name"), str):
        return NamedTool(value["name"])
    raise body_error("invalid_value", 'must be none, auto, required or like {"type": "function", "name": "…"}')


class TextFormat(StrictModel):
    """How the text is to be: ``text``, ``json_object``, or ``json_schema`` with a name and a schema beside it."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema_: Annotated[Mapping[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None
    description: Text | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.type == "json_schema" and (self.schema_ is None or self.name is None):
            missing = "schema" if self.schema_ is None else "name"
            raise field_error(missing, "missing_required_parameter", "is required where type is json_schema")
        return self

    def for_chat(self) -> dict[str, Any]:
        """The format as chat completions have it."""
        if self.type != "json_schema":
            return {"type": self.type}
        schema = self.model_dump(by_alias=True, exclude_none=True, exclude={"type"})
        parse_value(JsonSchema, schema)
        return {"type": "json_schema", "json_schema": schema}


class ResponseText(StrictModel):
    """What the text of a response is to be like."""

    format: TextFormat | None = None
    verbosity: Annotated[Any, only_off("medium", instead="say in the input how long the answer should be")] = None


class Reasoning(StrictModel):
    """Of models that reason apart, which are none here."""

    effort: Annotated[Any, only_off("none", instead="this server's models do not reason apart")] = None
    summary: Annotated[Any, only_off("auto", instead="this server's models do not reason apart")] = None
    generate_summary: Annotated[Any, only_off("auto", instead="this server's models do not reason apart")] = None


class ResponseStreamOptions(StrictModel):
    """OpenAI's options of a stream of events."""

    include_obfuscation: Annotated[Any, only_off(False, instead="events are not padded; leave it out")] = None


def _include(value: list[str]) -> list[str]:
    for name in value:
        if name not in _INCLUDABLE:
            raise body_error("invalid_value", f"has {short_repr(name)}, which is not known: remove it")
    return value


class ResponsesChat(ChatCompletionRequest):
    """The chat that a response is computed as; its log says whether the first message is the instructions."""

    _has_instructions: bool = PrivateAttr(default=False)

    def logged_prompt(self) -> dict[str, Any]:
        """As a chat's, and ``instructions`` where the first message that was sent is those of this response alone."""
        return {**super().logged_prompt(), **({"instructions": True} if self._has_instructions else {})}


class ResponsesRequest(StrictModel):
    """The body of ``POST /v1/responses``."""

    model: ModelName
    input: Annotated[list[dict[str, Any]], PlainValidator(_input, json_schema_input_type=str | list[dict[str, Any]])]
    instructions: Text | None = None
    previous_response_id: Annotated[str, Field(max_length=1024)] | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=INT64_MAX)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: Annotated[list[ResponsesTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Annotated[Any, PlainValidator(_tool_choice, json_schema_input_type=str | dict[str, Any] | None)] = None
    parallel_tool_calls: bool | None = None
    text: ResponseText | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    store: bool | None = None
    include: Annotated[list[str], AfterValidator(_include)] | None = None
    user: Label | None = None
    metadata: Metadata = None

    # Accepted and ignored: they change no answer.
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    prompt_cache_retention: Label | None = None
    max_tool_calls: int | None = None
    # Accepted at the value that means what happens anyway.
    reasoning: Reasoning | None = None
    truncation: Annotated[Any, only_off("disabled", instead="shorten the input yourself; leave it out")] = None
    service_tier: Annotated[Any, only_off("auto", "default", instead="there is one tier; leave it out")] = None
    background: Annotated[Any, only_off(False, instead="answers come at once; use /v1/batches for what has time")] = (
        None
    )
    conversation: Annotated[Any, only_off(instead="use previous_response_id, or send the history")] = None
    prompt: Annotated[Any, only_off(instead="send instructions and input")] = None
    context_management: Annotated[Any, only_off([], instead="leave it out")] = None
    moderation: Annotated[Any, only_off(instead="leave it out")] = None

    def chat(self, before: Sequence[Mapping[str, Any]] = ()) -> ResponsesChat:
        """The chat that this becomes.

        Args:
            before: The messages of the response that this one goes on from.

        Raises:
            InvalidRequest: Its parts do not fit together.
        """
        instructions = [] if self.instructions is None else [{"role": "system", "content": self.instructions}]
        named = isinstance(self.tool_choice, NamedTool)
        choice = {"type": "function", "function": {"name": str(self.tool_choice)}} if named else self.tool_choice
        fields = {
            "model": self.model,
            "messages": [*instructions, *before, *self.input],
            "max_completion_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "logprobs": True if self.wants_logprobs else None,
            "top_logprobs": self.top_logprobs if self.wants_logprobs else None,
            "tools": None if self.tools is None else [tool.for_chat() for tool in self.tools],
            "tool_choice": choice,
            "parallel_tool_calls": self.parallel_tool_calls,
            "response_format": self.text.format.for_chat() if self.text is not None and self.text.format else None,
            "stream": self.stream,
            "store": self.store,
            "user": self.user,
            "metadata": self.metadata,
        }
        chat = parse_value(ResponsesChat, {name: value for name, value in fields.items() if value is not None})
        chat._has_instructions = bool(instructions)
        return chat

    @property
    def num_answers(self) -> int:
        """How many answers the engine computes for it: one."""
        return 1

    @property
    def wants_logprobs(self) -> bool:
        """Whether the response shows log-probabilities."""
        return _LOGPROBS in (self.include or ()) or bool(self.top_logprobs)

    def echo(self) -> dict[str, Any]:
        """The fields that the response repeats."""
        named = isinstance(self.tool_choice, NamedTool)
        format = {"type": "text"}
        if self.text is not None and self.text.format is not None:
            format = self.text.format.model_dump(by_alias=True, exclude_none=True)
        return {
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": dict(self.metadata or {}),
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": self.previous_response_id,
            "store": self.store is not False,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "text": {"format": format, "verbosity": "medium"},
            "tool_choice": {"type": "function", "name": str(self.tool_choice)} if named else self.tool_choice or "auto",
            "tools": [shown_tool(tool.for_chat()) for tool in self.tools or ()],
            "top_logprobs": self.top_logprobs or 0,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "user": self.user,
        }


def shown_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool of a chat as responses show it."""
    function = tool["function"]
    return {
        "type": "function",
        "name": function["name"],
        "description": function.get("description"),
        "parameters": function.get("parameters"),
        "strict": function.get("strict", False),
    }
