"""What the engine is asked and what it answers: token ids in, token ids out.

An adapter is named by its digest.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Literal

#: What a grammar may be made of: ``grammars/grammar.py`` says how.
GrammarKind = Literal["json", "regex", "choice", "grammar"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How the next tokens of one request are chosen.

    ``temperature`` 0 is greedy. ``top_logprobs`` asks for the log-probability of each chosen token and of that many
    alternatives (``None``: no log-probabilities at all); ``prompt_logprobs`` asks the same for the prompt's own tokens.
    Log-probabilities are those of the model, before temperature and penalties. ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0
    leave all tokens; ``SampleTokens`` says in which order they apply. ``grammar`` is what ``grammars/grammar.py``
    makes: the answer keeps to it, and ends when it is complete.
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One prompt to be continued. ``prompt`` are token ids; ``adapter`` is a digest or ``None`` for the bare base."""

    id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    adapter: str | None = None


class FinishReason(enum.StrEnum):
    STOP = "stop"  # a stop token was sampled, or the grammar leaves nothing to say
    LENGTH = "length"  # max_tokens, or the context is full
    ABORT = "abort"  # cancelled by whoever asked
    ERROR = "error"  # the engine could not go on; Delta.error says why


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's log-probability and the most likely alternatives at its place, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class Delta:
    """What one step adds to one request. ``token_ids`` excludes the stop token that ended it.

    With the first token come ``num_cached``, how many of the prompt's tokens did not have to be computed, and
    ``queued_seconds``, how long the request waited in the engine for its place.
    """

    request_id: str
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] | None = None
    num_cached: int = 0
    queued_seconds: float | None = None
    finish_reason: FinishReason | None = None
    error: str | None = None

    @property
    def done(self) -> bool:
        return self.finish_reason is not None
