"""Chat and text completions, their usage and log-probabilities, whole and streamed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptTokens:
    """Details of a prompt's tokens: ``cached_tokens`` were taken from the prefix cache."""

    cached_tokens: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Token counts of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """What answered: ``name@version`` or the base's id, and the arm of an experiment if it was one.

    With ``ask_feedback`` the user is to be asked for feedback: a random draw chose the answer.
    """

    adapter: str
    experiment: str | None = None
    arm: str | None = None
    ask_feedback: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Alternative:
    """An alternative token at a position, and its log-probability in nats."""

    token: str
    logprob: float
    bytes: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLogprob:
    """A generated token, its log-probability in nats, and the most likely tokens at its position."""

    token: str
    logprob: float
    bytes: tuple[int, ...] | None = None
    top_logprobs: tuple[Alternative, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptLogprob:
    """The log-probability of a token, in nats, at a position of the prompt; ``rank`` is known of the likeliest only."""

    logprob: float
    decoded_token: str
    rank: int | None = None


PromptLogprobs = tuple[Mapping[str, PromptLogprob] | None, ...]
"""For each token of a prompt: its own log-probability and those of the likeliest, by token id. The first has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatLogprobs:
    """Log-probabilities of the tokens of a chat answer."""

    content: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class FunctionCall:
    """The name of a function, and its arguments: the text of a JSON object."""

    name: str
    arguments: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolCall:
    """A tool call of an answer. Its result goes back in a message with ``role`` tool and this ``id``."""

    id: str
    function: FunctionCall
    type: str = "function"


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatMessage:
    """A generated message. ``content`` is None if it has tool calls and no text."""

    role: str
    content: str | None
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatChoice:
    """One of the ``n`` choices of a chat completion."""

    index: int
    message: ChatMessage
    finish_reason: str | None
    logprobs: ChatLogprobs | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatCompletion:
    """A chat completion."""

    id: str
    created: datetime
    model: str
    choices: tuple[ChatChoice, ...]
    usage: Usage
    graftwork: Origin
    prompt_logprobs: PromptLogprobs | None = None

    @property
    def text(self) -> str:
        """What the first choice says."""
        return self.choices[0].message.content or ""

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tool calls of the first choice."""
        return self.choices[0].message.tool_calls

    @property
    def adapter(self) -> str:
        """The version that answered, ``intents@7``, or the base's id."""
        return self.graftwork.adapter


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionLogprobs:
    """Log-probabilities in nats, as lists with an entry per token. The first token of a prompt has none."""

    tokens: tuple[str, ...]
    token_logprobs: tuple[float | None, ...]
    top_logprobs: tuple[Mapping[str, float] | None, ...] | None = None
    text_offset: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionChoice:
    """One of the ``n`` choices of a text completion."""

    index: int
    text: str
    finish_reason: str | None
    logprobs: CompletionLogprobs | None = None
    prompt_logprobs: PromptLogprobs | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """A text completion."""

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
    """The log-probabilities of the tokens of a text, in nats; None for the first token."""

    tokens: tuple[str, ...]
    logprobs: tuple[float | None, ...]
    top: tuple[Mapping[str, float] | None, ...] | None
    usage: Usage
    adapter: str

    @property
    def total(self) -> float:
        """The log-probability of the text given its first token, in nats."""
        return sum(logprob for logprob in self.logprobs if logprob is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokenized:
    """The tokens of a prompt; ``token_strs`` are their texts, if asked for."""

    count: int
    max_model_len: int
    tokens: tuple[int, ...]
    token_strs: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Detokenized:
    """The text of token ids."""

    prompt: str


@dataclass(frozen=True, kw_only=True, slots=True)
class FunctionCallDelta:
    """What an event adds to a function's arguments. The name is set in the first event of a call only."""

    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolCallDelta:
    """What an event of a stream adds to the tool call ``index``. ``id`` is set in the first event of a call only."""

    index: int
    function: FunctionCallDelta
    id: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatDelta:
    """What an event of a stream adds to the choice ``index``."""

    index: int
    text: str
    finish_reason: str | None = None
    logprobs: ChatLogprobs | None = None
    tool_calls: tuple[ToolCallDelta, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionDelta:
    """What an event of a stream adds to the choice ``index``."""

    index: int
    text: str
    finish_reason: str | None = None
    logprobs: CompletionLogprobs | None = None
