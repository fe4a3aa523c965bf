"""The body of ``POST /v1/completions``: one or several prompts, each a text or token ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from graftwork.server.bodies import field_error, only_off
from graftwork.server.openai.requests.generation import (
    INT64_MAX,
    MAX_TOP_LOGPROBS,
    GenerationRequest,
    check_token_ids,
)
from graftwork.server.openai.requests.prompts import Prompt, prompts_field

MAX_PROMPTS = 32
DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's default


class CompletionRequest(GenerationRequest):
    """The body of ``POST /v1/completions``."""

    prompt: Annotated[tuple[Prompt, ...], prompts_field(most=MAX_PROMPTS, noun="prompts")]
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
            check_token_ids("prompt", ids, vocab_size)
        return tokens

    def _default_tokens(self, left: int) -> int:
        return min(DEFAULT_COMPLETION_TOKENS, left)

    def _logprobs(self) -> tuple[int | None, int | None]:
        echoed = self.logprobs if self.echo else None
        return self.logprobs, max((n for n in (echoed, self.prompt_logprobs) if n is not None), default=None)
