"""Chat and text completions, their usage and log-probabilities, whole and streamed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptTokens:
    """Of a prompt's tokens, ``cached_tokens`` did not have to be computed."""

    cached_tokens: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Tokens read and written for one request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Who answered: ``name@version``, or the base's id when no adapter did; and as which arm of which experiment."""

    adapter: str
    experiment: str | None = None
    arm: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Alternative:
    """A token that could have stood here, and its log-probability."""

    token: str
    logprob: float
    bytes: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLogprob:
    """A chosen token, its log-probability, and the most likely tokens at its place."""

    token: str
    logprob: float
    bytes: tuple[int, ...] | None = None
    top_logprobs: tuple[Alternative, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatLogprobs:
    """Log-probabilities of a chat answer, token by token."""

    content: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatMessage:
    """One turn as the model wrote it."""

    role: str
    content: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatChoice:
    """One of ``n`` answers."""

    index: int
    message: ChatMessage
    finish_reason: str | None
    logprobs: ChatLogprobs | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatCompletion:
    """A whole chat answer."""

    id: str
    created: datetime
    model: str
    choices: tuple[ChatChoice, ...]
    usage: Usage
    graftwork: Origin

    @property
    def text(self) -> str:
        """What the first choice says."""
        return self.choices[0].message.content or ""

    @property
    def adapter(self) -> str:
        """The version that answered, ``intents@7``, or the base's id."""
        return self.graftwork.adapter


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionLogprobs:
    """Four lists of one length, one entry per token. A prompt's first token has no log-probability."""

    tokens: tuple[str, ...]
    token_logprobs: tuple[float | None, ...]
    top_logprobs: tuple[Mapping[str, float] | None, ...] | None = None
    text_offset: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionChoice:
    """One of ``n`` continuations."""

    index: int
    text: str
    finish_reason: str | None
    logprobs: CompletionLogprobs | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """A whole text completion."""

    id: str
    created: datetime
    model: str
    choices: tuple[CompletionChoice, ...]
    usage: Usage
    graftwork: Origin

    @property
    def text(self) -> str:
        """What the first choice says."""
        return self.choices[0].text

    @property
    def adapter(self) -> str:
        """The version that answered, ``intents@7``, or the base's id."""
        return self.graftwork.adapter


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How likely the model finds a text, token by token; ``None`` for the first, which nothing precedes."""

    tokens: tuple[str, ...]
    logprobs: tuple[float | None, ...]
    top: tuple[Mapping[str, float] | None, ...] | None
    usage: Usage
    adapter: str

    @property
    def total(self) -> float:
        """Log-probability of the whole text after its first token, in nats."""
        return sum(logprob for logprob in self.logprobs if logprob is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatDelta:
    """What one chunk of a stream adds to choice ``index``."""

    index: int
    text: str
    finish_reason: str | None = None
    logprobs: ChatLogprobs | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionDelta:
    """What one chunk of a stream adds to choice ``index``."""

    index: int
    text: str
    finish_reason: str | None = None
    logprobs: CompletionLogprobs | None = None
