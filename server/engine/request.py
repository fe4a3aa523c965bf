"""The engine's input and output: requests and deltas, both in token ids, and what grammars are made of.

An adapter is named by its digest.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

#: What a grammar may be made of: ``grammars/grammar.py`` says how.
GrammarKind = Literal["json", "regex", "choice", "grammar", "tool_calls"]


Pieces = Sequence[str | int]
"""Text in which some tokens are named by their ids."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolSchema:
    """A tool that may be called.

    Attributes:
        parameters: The JSON schema of its arguments.
        field: Where in the body the schema stands, for errors.
    """

    name: str
    parameters: Mapping[str, Any]
    field: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolCallsSpec:
    """What an answer that calls tools has to look like.

    Attributes:
        tools: Any of which may be called.
        marker: What announces a call within text; empty if only the answer's beginning tells.
        opening: Between the marker and the name of the first call.
        middle: Between a name and its arguments.
        between: Between the arguments of a call and the next name; ``None``: one call is all.
        closing: After the last arguments.
        required: Whether there must be a call. If not, there may be text.
        answer: The JSON schema of an answer without calls; ``None``: any text.
        answer_field: Where in the body that stands.
    """

    tools: Sequence[ToolSchema]
    marker: Pieces
    opening: Pieces
    middle: Pieces
    between: Pieces | None
    closing: Pieces
    required: bool
    answer: Mapping[str, Any] | None = None
    answer_field: str = ""

    @property
    def is_free(self) -> bool:
        """Whether an answer may be any text with calls in it."""
        return not self.required and self.answer is None

    @classmethod
    def from_json(cls, text: str) -> ToolCallsSpec:
        """From what ``dataclasses.asdict`` makes of one, as JSON: so it travels."""
        fields = json.loads(text)
        return cls(**{**fields, "tools": [ToolSchema(**tool) for tool in fields["tools"]]})

    def with_schemas(self, change: Callable[[str, Mapping[str, Any]], Mapping[str, Any]]) -> ToolCallsSpec:
        """The same with ``change(field, schema)`` for each schema and the field where it stands."""
        tools = [replace(tool, parameters=change(tool.field, tool.parameters)) for tool in self.tools]
        answer = None if self.answer is None else change(self.answer_field, self.answer)
        return replace(self, tools=tools, answer=answer)


#: How a prompt's hidden states become one vector: their mean, or the last token's alone.
Pooling = Literal["mean", "last"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How the tokens of one request are chosen.

    Attributes:
        max_tokens: The most generated tokens; 0 only scores the prompt.
        min_tokens: Stop tokens are forbidden before.
        temperature: 0 is greedy.
        top_k: Sample from this many of the likeliest tokens; 0: from all. ``SampleTokens`` has the order of the three.
        top_p: Sample from the smallest set of tokens with this much probability.
        min_p: Sample from tokens that are at least this many times as likely as the likeliest.
        frequency_penalty: Subtracted from a token's logit for each time it was generated.
        presence_penalty: Subtracted from the logit of every token that was generated.
        repetition_penalty: Makes every token of prompt and answer less likely: see ``RepetitionPenalty``.
        logit_bias: What is added to the logits of these token ids.
        seed: Of this request's random numbers; ``None``: random.
        stop_token_ids: Any of them ends the request.
        top_logprobs: Return the log-probability of each chosen token and of that many alternatives; ``None``: of none.
            They are the model's, before temperature and penalties.
        prompt_logprobs: The same for the prompt's own tokens.
        grammar: What the answer keeps to, and ends with: a string that ``grammars/grammar.py`` makes.
        pooling: Return the prompt's hidden states as one vector. No logits are computed and no token is generated.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop_token_ids: frozenset[int] = frozenset()
    top_logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: str | None = None
    pooling: Pooling | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One prompt to be continued.

    Attributes:
        id: Unique among running requests.
        prompt: Token ids.
        sampling: How its tokens are chosen.
        adapter: A digest; ``None``: the bare base.
        cache_salt: Requests of another salt share no prefixes with it.
        tenant: Who asks: tenants share the engine fairly.
        weight: The tenant's share, beside the weights of other tenants.
    """

    id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    adapter: str | None = None
    cache_salt: str = ""
    tenant: str = ""
    weight: float = 1.0


class FinishReason(enum.StrEnum):
    """Why a request ended."""

    STOP = "stop"  # a stop token was sampled, or the grammar is complete
    LENGTH = "length"  # max_tokens, or the context is full; also of a prompt that is only scored or pooled
    ABORT = "abort"  # cancelled by the client
    ERROR = "error"  # the engine could not go on; Delta.error says why


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's log-probability (natural logarithm), and the most likely tokens at its position, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class Delta:
    """What one step adds to one request.

    Attributes:
        request_id: The request.
        token_ids: New tokens, without the stop token that ended it.
        logprobs: Of the new tokens, if requested.
        prompt_logprobs: Of prompt tokens that this step computed, if requested; ``None`` for the first token.
        embedding: The pooled prompt, of length 1, if requested: with the request's last delta.
        num_cached: With the first token: prompt tokens that the prefix cache had.
        queued_seconds: With the first token: how long the request waited in the engine before its first step.
        finish_reason: Why it ended; ``None``: it goes on.
        error: What failed, with ``FinishReason.ERROR``.
    """

    request_id: str
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] | None = None
    embedding: list[float] | None = None
    num_cached: int = 0
    queued_seconds: float | None = None
    finish_reason: FinishReason | None = None
    error: str | None = None

    @property
    def done(self) -> bool:
        """Whether this is the request's last delta."""
        return self.finish_reason is not None
