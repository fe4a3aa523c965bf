"""OpenAI's answers, whole and in chunks. ``server/openai/answers`` writes this JSON without building these objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NotRequired

from typing_extensions import TypedDict


class CachedTokens(TypedDict):
    """Of a prompt's tokens, ``cached_tokens`` did not have to be computed."""

    cached_tokens: int


class UsageObject(TypedDict):
    """Tokens read and written for one request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class OriginObject(TypedDict):
    """The version that answered, ``name@version`` or the base's id, and its arm in an experiment.

    ``ask_feedback`` is there, and true, in a random share of the answers: ask the user for feedback on it.
    """

    adapter: str
    experiment: NotRequired[str]
    arm: NotRequired[str]
    ask_feedback: NotRequired[Literal[True]]


class AlternativeToken(TypedDict):
    """A token that was possible at this position."""

    token: str
    bytes: list[int]
    logprob: float


class ChatToken(AlternativeToken):
    """A chosen token, and the most likely ones at its position."""

    top_logprobs: list[AlternativeToken]


class ChatLogprobs(TypedDict):
    """Log-probabilities of a chat answer, token by token."""

    content: list[ChatToken]
    refusal: None


class FunctionCallObject(TypedDict):
    """A function's name, and the text of a JSON object with its arguments."""

    name: str
    arguments: str


class ToolCallObject(TypedDict):
    """A call that the answer makes; its result goes back with this id."""

    id: str
    type: Literal["function"]
    function: FunctionCallObject


class FunctionCallDelta(TypedDict):
    """What a chunk adds to a call; the name comes with the first."""

    name: NotRequired[str]
    arguments: str


class ToolCallDeltaObject(TypedDict):
    """What a chunk adds to the call ``index``; id and type come with the first."""

    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: FunctionCallDelta


class ChatMessage(TypedDict):
    """One turn as the model wrote it. ``content`` is null where there are calls and no text."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: NotRequired[list[ToolCallObject]]


class ChatChoice(TypedDict):
    """One of ``n`` answers."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class _Head(TypedDict):
    id: str
    created: int
    model: str
    system_fingerprint: str
    graftwork: OriginObject


class PromptLogprob(TypedDict):
    """A token at a position of the prompt. ``rank`` is null beyond the likeliest that were asked for."""

    logprob: float
    rank: int | None
    decoded_token: str


#: Of each token of a prompt, by token id: its own and those of the likeliest. The first has none.
PromptLogprobs = list[Mapping[str, PromptLogprob] | None]


class ChatCompletionObject(_Head):
    """A whole chat answer."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: UsageObject
    prompt_logprobs: NotRequired[PromptLogprobs]


class ChatDelta(TypedDict):
    """What a chunk adds to a message; the role comes with the first."""

    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]
    refusal: NotRequired[None]
    tool_calls: NotRequired[list[ToolCallDeltaObject]]


class ChatChunkChoice(TypedDict):
    """What a chunk adds to one choice; ``finish_reason`` comes with the last."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"] | None


class ChatCompletionChunkObject(_Head):
    """One event of a stream, which ends with ``[DONE]``. ``usage`` comes last, where asked for."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: NotRequired[UsageObject | None]


class CompletionLogprobs(TypedDict):
    """Four lists of one length, one entry per token. A prompt's first token has no log-probability."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[Mapping[str, float] | None]
    text_offset: list[int]


class CompletionChoice(TypedDict):
    """One of ``n`` continuations."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]
    prompt_logprobs: NotRequired[PromptLogprobs]


class CompletionObject(_Head):
    """A whole text completion."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: UsageObject


class CompletionChunkChoice(TypedDict):
    """What a chunk adds to one choice; ``finish_reason`` comes with the last."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class CompletionChunkObject(_Head):
    """One event of a stream, which ends with ``[DONE]``."""

    object: Literal["text_completion"]
    choices: list[CompletionChunkChoice]
    usage: NotRequired[UsageObject | None]
