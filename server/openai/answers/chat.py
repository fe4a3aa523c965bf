"""The answer to a chat completion: ``chat.completion`` and ``chat.completion.chunk``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graftwork.adapters.prompts.tool_calls import ToolCallFormat
from graftwork.server.openai.answers.answer import AnswerHead, ChunkedAnswer
from graftwork.server.openai.answers.choice import ChoiceDelta, Finish, GeneratedChoice, ScoredToken
from graftwork.server.openai.answers.tool_calls import ToolCallDelta, ToolCallParser
from graftwork.server.openai.events import json_logprob
from graftwork.server.openai.requests.chat import ChatCompletionRequest
from graftwork.server.openai.vocabulary import Vocabulary


class ChatAnswer(ChunkedAnswer):
    """``chat.completion`` and ``chat.completion.chunk``.

    Args:
        request: The parsed body.
        head: The fields that every chunk and body repeats.
        vocabulary: Tokens as text.
        prompt: Token ids of the conversation.
        tool_calls: How the base writes them; ``None``: the answer has none.
    """

    chunk_kind = "chat.completion.chunk"
    body_kind = "chat.completion"

    def __init__(
        self,
        request: ChatCompletionRequest,
        head: AnswerHead,
        vocabulary: Vocabulary,
        prompt: Sequence[int],
        tool_calls: ToolCallFormat | None = None,
    ) -> None:
        choices = chat_choices(request, vocabulary, tool_calls)
        super().__init__(request, head, vocabulary, choices, len(prompt))

    def opening(self) -> bytes:
        """A chunk with the role for each choice."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        members = {"delta": delta, "logprobs": None, "finish_reason": None}
        return b"".join(self._chunk(choice.index, members) for choice in self.choices)

    def _more(self) -> dict[str, Any]:
        return self._prompt_logprobs(self.choices[0])

    def _text_chunk(self, piece: ChoiceDelta) -> dict[str, Any]:
        logprobs = self._logprobs(piece.scored) if piece.scored else None
        return {"delta": {"content": piece.text}, "logprobs": logprobs, "finish_reason": None}

    def _calls_chunk(self, calls: Sequence[ToolCallDelta]) -> dict[str, Any]:
        return {"delta": {"tool_calls": [*map(_call_delta, calls)]}, "logprobs": None, "finish_reason": None}

    def _last_chunk(self, finish: Finish) -> dict[str, Any]:
        return {"delta": {}, "logprobs": None, "finish_reason": finish}

    def _whole(self, choice: GeneratedChoice) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
        if choice.tool_calls:
            calls = [call.as_json() for call in choice.tool_calls]
            message |= {"content": choice.text or None, "tool_calls": calls}
        return {
            "index": choice.index,
            "message": message,
            "logprobs": None if choice.scored is None else self._logprobs(choice.scored),
            "finish_reason": choice.finish,
        }

    def _logprobs(self, scored: Sequence[ScoredToken]) -> dict[str, Any]:
        return {"content": token_logprobs(self._vocabulary, scored), "refusal": None}


def chat_choices(
    request: ChatCompletionRequest, vocabulary: Vocabulary, tool_calls: ToolCallFormat | None
) -> list[GeneratedChoice]:
    """The choices of a chat before they are generated. ``tool_calls`` as ``ChatAnswer`` takes it."""
    return [
        GeneratedChoice(
            index,
            vocabulary.tokens,
            stop=request.stop,
            scored=bool(request.logprobs),
            calls=ToolCallParser(tool_calls, parallel=request.takes_several_calls) if tool_calls else None,
            visible=frozenset(tool_calls.tokens.values() if tool_calls else ()),
            skip_special_tokens=not request.shows_special_tokens,
        )
        for index in range(request.choices)
    ]


def token_logprobs(vocabulary: Vocabulary, scored: Sequence[ScoredToken]) -> list[dict[str, Any]]:
    """Tokens with their log-probabilities and alternatives, as chats and responses have them."""

    def shown(token_id: int, logprob: float) -> dict[str, Any]:
        return {**vocabulary.members(token_id), "logprob": json_logprob(logprob)}

    return [
        {**shown(score.token_id, score.logprob), "top_logprobs": [shown(*alternative) for alternative in score.top]}
        for item in scored
        if (score := item.score) is not None
    ]


def _call_delta(delta: ToolCallDelta) -> dict[str, Any]:
    """What a chunk adds to a call: only the first one of a call has its id, which clients would add up."""
    if delta.begins is None:
        return {"index": delta.index, "function": {"arguments": delta.arguments}}
    function = {"name": delta.begins.name, "arguments": delta.arguments}
    return {"index": delta.index, "id": delta.begins.id, "type": "function", "function": function}
