"""The body of ``POST /v1/completions``: one or several prompts, each a text or token ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    Field,
    PlainValidator,
    model_validator,
)

from graftwork.adapters.errors import InvalidRequest
from graftwork.server.bodies import body_error, field_error, json_type, only_off, reject_nul, short_repr
from graftwork.server.openai.requests.generation import INT64_MAX, MAX_TOP_LOGPROBS, GenerationRequest

MAX_PROMPTS = 32
MAX_PROMPT_TOKENS = 2**20  # more than any model's context: the model is not resolved yet
DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's default

Prompt = str | tuple[int, ...]
"""A text or token ids."""

_PROMPT_FORMS: Any = str | list[str] | list[int] | list[list[int]]
"""For the OpenAPI document."""


def _prompts(value: Any) -> tuple[Prompt, ...]:
    """Parse the four forms of ``prompt`` into one."""
    if isinstance(value, str):
        return (reject_nul(value),)
    if not isinstance(value, list):
        raise body_error("invalid_type", f"must be a string, token ids, or a list of either, not {json_type(value)}")
    if not value:
        raise body_error("invalid_value", "is an empty list: give at least one prompt")
    if type(value[0]) is int:
        return (_token_ids("", value),)
    if len(value) > MAX_PROMPTS:
        raise body_error("invalid_value", f"takes at most {MAX_PROMPTS} prompts in one request, got {len(value)}")
    if all(isinstance(item, str) for item in value):
        return tuple(map(reject_nul, value))
    if all(isinstance(item, list) for item in value):
        return tuple(_token_ids(f"[{index}]", item) for index, item in enumerate(value))
    raise body_error("invalid_type", "must not mix kinds: a list of strings, of token ids, or of lists of token ids")


def _token_ids(where: str, value: list[Any]) -> tuple[int, ...]:
    if not value:
        raise body_error("invalid_value", f"{where} is an empty list of token ids: give at least one")
    if len(value) > MAX_PROMPT_TOKENS:
        raise body_error("invalid_value", f"{where} has {len(value)} token ids: no model here takes that many")
    for index, item in enumerate(value):
        if type(item) is not int or item < 0:
            raise body_error("invalid_type", f"{where}[{index}] must be a token id, not {short_repr(item)}")
    return tuple(value)


class CompletionRequest(GenerationRequest):
    """The body of ``POST /v1/completions``."""

    prompt: Annotated[tuple[Prompt, ...], PlainValidator(_prompts, json_schema_input_type=_PROMPT_FORMS)]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    best_of: Annotated[int, Field(ge=1, le=INT64_MAX)] | None = None
    suffix: Annotated[Any, only_off("", instead="text cannot be inserted; leave it out")] = None

    prompt_field: ClassVar[str] = "prompt"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise field_error(
                "max_tokens", "invalid_value", "must be at least 1; 0 is only for echo, which scores the prompt"
            )
        if self.best_of is not None and self.best_of != self.choices:
            raise field_error("best_of", "unsupported_parameter", "is not supported beyond n: leave it out")
        return self

    @property
    def num_answers(self) -> int:
        """Those of every prompt."""
        return self.choices * len(self.prompt)

    def logged_prompt(self) -> dict[str, Any]:
        """``{"prompt": […]}``."""
        return {"prompt": [prompt if isinstance(prompt, str) else list(prompt) for prompt in self.prompt]}

    def prompts(self, encode: Callable[[str], list[int]], vocab_size: int) -> list[tuple[int, ...]]:
        """The token ids of every prompt.

        Args:
            encode: Tokenizes a text.
            vocab_size: Of the base.

        Raises:
            InvalidRequest: A token id is not in the vocabulary.
        """
        tokens = [tuple(encode(prompt)) if isinstance(prompt, str) else prompt for prompt in self.prompt]
        for ids in tokens:
            if (largest := max(ids, default=0)) >= vocab_size:
                raise InvalidRequest(
                    f"the prompt has token id {short_repr(largest)}, but this model's ids go "
                    f"from 0 to {vocab_size - 1}",
                    param="prompt",
                )
        return tokens

    def _default_tokens(self, left: int) -> int:
        return min(DEFAULT_COMPLETION_TOKENS, left)

    def _logprobs(self) -> tuple[int | None, int | None]:
        return self.logprobs, self.logprobs if self.echo else None
