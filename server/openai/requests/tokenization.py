"""The bodies of ``POST /tokenize`` and ``POST /detokenize``, which are vLLM's."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, PlainValidator, model_validator

from graftwork.server.bodies import (
    ModelName,
    StrictModel,
    Text,
    body_error,
    field_error,
)
from graftwork.server.openai.requests.chat import (
    MAX_MESSAGES,
    ChatCompletionRequest,
    Message,
    TemplateKwargs,
    check_continuation,
)
from graftwork.server.openai.requests.prompts import token_ids
from graftwork.server.openai.requests.tools import MAX_TOOLS, Tool

#: Of a text, and of a conversation once it is rendered.
MAX_TEXT_CHARS = 2**20
MAX_TOKENS = 2**17


def _tokens(value: Any) -> tuple[int, ...]:
    if value == []:
        return ()
    if isinstance(value, list) and len(value) > MAX_TOKENS:
        raise body_error("invalid_value", f"takes at most {MAX_TOKENS} token ids, got {len(value)}")
    return token_ids(value)


class _OfModel(StrictModel):
    # The base, or any adapter: all of them have the base's tokenizer.
    model: ModelName | None = None


class TokenizeRequest(_OfModel):
    """A text, or a conversation."""

    prompt: Annotated[Text, Field(max_length=MAX_TEXT_CHARS)] | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: TemplateKwargs = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            given = "is required, or messages" if self.prompt is None else "and messages are both given: give one"
            raise field_error("prompt", "invalid_value", given)
        for name in ("add_generation_prompt", "continue_final_message", "chat_template_kwargs", "tools"):
            if self.messages is None and getattr(self, name) is not None:
                raise field_error(name, "invalid_value", "is for messages: leave it out")
        if self.messages is not None and self.add_special_tokens:
            raise field_error(
                "add_special_tokens", "unsupported_parameter", "is for prompt: the chat template places special tokens"
            )
        check_continuation(self.continue_final_message, self.add_generation_prompt)
        return self

    def chat(self) -> ChatCompletionRequest | None:
        """The chat that has these messages; ``None`` for a text."""
        if self.messages is None:
            return None
        # What it is made of was checked field by field.
        return ChatCompletionRequest.model_construct(
            messages=self.messages,
            tools=self.tools,
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=self.continue_final_message,
            chat_template_kwargs=self.chat_template_kwargs,
        )


class DetokenizeRequest(_OfModel):
    """Token ids."""

    tokens: Annotated[tuple[int, ...], PlainValidator(_tokens, json_schema_input_type=list[int])]
