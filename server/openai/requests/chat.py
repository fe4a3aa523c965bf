"""The body of ``POST /v1/chat/completions`` and its messages.

OpenAI's fields that are not supported are accepted at the value that means "off", and refused by name at any other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    Field,
    PlainValidator,
    PrivateAttr,
    model_validator,
)

from graftwork.adapters.experiments.plan import Arm
from graftwork.adapters.prompts.tool_calls import ToolCallFormat
from graftwork.server.bodies import (
    Label,
    StrictModel,
    Text,
    body_error,
    field_error,
    json_type,
    only_off,
    reject_nul,
    short_repr,
    string_at,
    write_json,
)
from graftwork.server.openai.requests.generation import INT64_MAX, MAX_TOP_LOGPROBS, GenerationRequest
from graftwork.server.openai.requests.structured_output import GrammarSource
from graftwork.server.openai.requests.tools import (
    MAX_TOOLS,
    MessageToolCall,
    NamedTool,
    Tool,
    ToolChoice,
    check_names,
    tool_calls_source,
)

MAX_MESSAGES = 4096


def _content(value: Any) -> str | list[dict[str, str]]:
    """A message's text: a string, or OpenAI's list of text parts. ``null`` and ``[]``, which clients send back as the
    content of an empty answer, are the empty string.
    """
    if value is None or value == []:
        return ""
    if isinstance(value, str):
        return reject_nul(value)
    if not isinstance(value, list):
        raise body_error("invalid_type", f"must be a string or a list of text parts, not {json_type(value)}")
    return [_part(index, part) for index, part in enumerate(value)]


def _part(index: int, part: Any) -> dict[str, str]:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise body_error("invalid_type", f'[{index}] must be an object like {{"type": "text", "text": "…"}}')
    if part["type"] != "text":
        raise body_error(
            "unsupported_parameter", f"[{index}] is of type {short_repr(part['type'])}: only text is supported"
        )
    # What else a part has are hints (cache_control) and notes of an answer that is sent back (annotations).
    return {"type": "text", "text": string_at(f"[{index}].text", part.get("text"))}


_TEMPLATE_FIELDS = {"role", "content", "name", "reasoning_content", "tool_calls", "tool_call_id"}

FUNCTIONS = "use tools, which replaced it"


class Message(StrictModel):
    """A message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        str | list[dict[str, str]], PlainValidator(_content, json_schema_input_type=str | list[dict[str, str]])
    ]
    tool_calls: Annotated[list[MessageToolCall], Field(max_length=MAX_TOOLS)] | None = None
    tool_call_id: Label | None = None
    # For templates that use them.
    name: Label | None = None
    reasoning_content: Text | None = None
    # What the official client sends back when an answer's message is appended to the conversation.
    refusal: Annotated[Any, only_off(instead="put the text into the content")] = None
    annotations: Annotated[Any, only_off([], instead="leave it out")] = None
    audio: Annotated[Any, only_off(instead="only text is supported")] = None
    function_call: Annotated[Any, only_off(instead=FUNCTIONS)] = None

    @model_validator(mode="before")
    @classmethod
    def _only_answers_may_be_empty(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if "content" not in value and value.get("tool_calls"):
            return {**value, "content": None}
        if value.get("role") not in ("assistant", "tool") and "content" in value:
            if value["content"] is None:
                raise field_error("content", "invalid_type", "must be text, not null: only an answer may be empty")
            if value["content"] == []:
                raise field_error("content", "invalid_value", "is an empty list: give a string or a text part")
        return value

    @model_validator(mode="after")
    def _tools_where_they_belong(self) -> Self:
        if self.tool_calls and self.role != "assistant":
            raise field_error("tool_calls", "invalid_value", "is for messages of the assistant")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            if self.role == "tool":
                raise field_error("tool_call_id", "missing_required_parameter", "is required where role is tool")
            raise field_error("tool_call_id", "invalid_value", "is for messages whose role is tool")
        return self


#: What a chat template is given by others than the client.
_GIVEN_TO_TEMPLATES = {
    *("messages", "tools", "documents", "add_generation_prompt", "continue_final_message"),
    *("chat_template", "tokenize", "raise_exception", "strftime_now"),
}
MAX_TEMPLATE_KWARGS_BYTES = 16 << 10


def _template_kwargs(value: Any) -> Mapping[str, Any] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise body_error("invalid_type", f"must be an object, not {json_type(value)}")
    for name in value:
        if not re.fullmatch(r"[A-Za-z_]\w{0,63}", name, re.ASCII):
            raise body_error("invalid_value", f"[{short_repr(name)}] is no name that a template could ask for")
        if name in _GIVEN_TO_TEMPLATES or name.endswith("_token"):
            raise body_error("invalid_value", f"[{short_repr(name)}] is not yours to set: leave it out")
    if len(write_json(value)) > MAX_TEMPLATE_KWARGS_BYTES:
        raise body_error("invalid_value", f"is too long: at most {MAX_TEMPLATE_KWARGS_BYTES} bytes of JSON")
    return value


#: What the base's chat template may ask for beside the conversation; each template has its own.
TemplateKwargs = Annotated[
    Mapping[str, Any] | None, PlainValidator(_template_kwargs, json_schema_input_type=Mapping[str, Any] | None)
]


def check_continuation(continue_final_message: bool | None, add_generation_prompt: bool | None) -> None:
    """A validator: a prompt ends where the last message goes on, or where an answer begins."""
    if continue_final_message and add_generation_prompt:
        raise field_error(
            "continue_final_message",
            "invalid_value",
            "and add_generation_prompt exclude one another: an answer that begins anew continues nothing",
        )


class ChatCompletionRequest(GenerationRequest):
    """The body of ``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=INT64_MAX)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice = None
    parallel_tool_calls: bool | None = None
    # vLLM's: how the conversation becomes a prompt.
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: TemplateKwargs = None

    # Accepted and ignored: they change no answer.
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    prompt_cache_retention: Label | None = None
    # Accepted at the value that means what happens anyway.
    modalities: Annotated[Any, only_off(["text"], instead='only ["text"] can be asked for')] = None
    service_tier: Annotated[Any, only_off("auto", "default", instead="there is one tier; leave it out")] = None
    reasoning_effort: Annotated[Any, only_off("none", instead="this server's models do not reason apart")] = None
    verbosity: Annotated[Any, only_off("medium", instead="say in the messages how long the answer should be")] = None
    functions: Annotated[Any, only_off([], instead=FUNCTIONS)] = None
    function_call: Annotated[Any, only_off("none", "auto", instead=FUNCTIONS)] = None
    audio: Annotated[Any, only_off(instead="only text can be asked for")] = None
    prediction: Annotated[Any, only_off(instead="leave it out")] = None
    moderation: Annotated[Any, only_off(instead="leave it out")] = None
    prompt_cache_options: Annotated[Any, only_off(instead="leave it out")] = None
    web_search_options: Annotated[Any, only_off(instead="leave it out")] = None

    prompt_field: ClassVar[str] = "messages"

    #: The messages in whose place an arm's system message stands: one, or none; ``None`` without such a message.
    _replaced: list[Message] | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_tokens == 0:
            raise field_error("max_tokens", "invalid_value", "must be at least 1")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise field_error(
                "max_tokens",
                "invalid_value",
                f"is {self.max_tokens} and max_completion_tokens is {self.max_completion_tokens}: give one of the two",
            )
        if self.top_logprobs and not self.logprobs:
            raise field_error("top_logprobs", "invalid_value", "needs logprobs to be true")
        check_continuation(self.continue_final_message, self.add_generation_prompt)
        if self.tools or self.tool_choice is not None:
            check_names(self.tools or (), self.tool_choice)
        return self

    def chat_messages(self) -> list[dict[str, Any]]:
        """The conversation as ``Prompts.chat`` takes it."""
        return _for_template(self.messages)

    def template_options(self) -> dict[str, Any]:
        """How ``Prompts.chat`` and ``Prompts.render`` use the chat template."""
        return {
            "tools": self.shown_tools(),
            "add_generation_prompt": self.add_generation_prompt is not False,
            "continue_final_message": bool(self.continue_final_message),
            "template_kwargs": self.chat_template_kwargs,
        }

    def shown_tools(self) -> list[dict[str, Any]]:
        """The tools that the answer may call, as ``Prompts.chat`` takes them."""
        return [] if self.tool_choice == "none" else [tool.as_json() for tool in self.tools or ()]

    @property
    def takes_several_calls(self) -> bool:
        """Whether an answer may have more than one call. A function that is named is called once, as at OpenAI."""
        return self.parallel_tool_calls is not False and not isinstance(self.tool_choice, NamedTool)

    def grammar_source(self, tool_calls: ToolCallFormat) -> GrammarSource | None:
        """See ``GenerationRequest.grammar_source``."""
        answer = super().grammar_source(tool_calls)
        if not self.tools or self.tool_choice == "none":
            return answer
        return tool_calls_source(
            self.tools, self.tool_choice, tool_calls, parallel=self.takes_several_calls, answer=answer
        )

    def with_arm(self, arm: Arm) -> Self:
        """See ``GenerationRequest.with_arm``; the arm's system message replaces the conversation's."""
        changed = super().with_arm(arm)
        if arm.system is None:
            return changed
        has_system = self.messages[0].role in ("system", "developer")
        messages = [Message(role="system", content=arm.system), *self.messages[has_system:]]
        changed = changed.model_copy(update={"messages": messages})
        changed._replaced = self.messages[:has_system]
        return changed

    def logged_prompt(self) -> dict[str, Any]:
        """``{"messages": […]}``; ``tools`` where there are any; what an arm ``replaced``, see ``prompt_as_sent``."""
        tools, replaced = self.shown_tools(), self._replaced
        return {
            "messages": _for_template(self.messages),
            **({"tools": tools} if tools else {}),
            **({} if replaced is None else {"replaced": _for_template(replaced)}),
        }

    def _limit(self) -> tuple[str, int | None]:
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return "max_tokens", self.max_tokens

    def _default_tokens(self, left: int) -> int:
        return left

    def _logprobs(self) -> tuple[int | None, int | None]:
        return (self.top_logprobs or 0) if self.logprobs else None, self.prompt_logprobs


def _for_template(messages: list[Message]) -> list[dict[str, Any]]:
    return [message.model_dump(exclude_none=True, include=_TEMPLATE_FIELDS) for message in messages]
