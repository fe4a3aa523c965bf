"""The answer to a chat completion: ``chat.completion`` and ``chat.completion.chunk``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graftwork.server.engine.request import TokenLogprob
from graftwork.server.openai.answers.answer import Answer, AnswerHead
from graftwork.server.openai.answers.choice import ChoiceDelta, Finish, GeneratedChoice, ScoredToken
from graftwork.server.openai.events import json_logprob
from graftwork.server.openai.requests.chat import ChatCompletionRequest
from graftwork.server.openai.vocabulary import Vocabulary


class ChatAnswer(Answer):
    """``chat.completion`` and ``chat.completion.chunk``. ``prompt`` are the token ids of the conversation."""

    chunk_kind = "chat.completion.chunk"
    body_kind = "chat.completion"

    def __init__(
        self, request: ChatCompletionRequest, head: AnswerHead, vocabulary: Vocabulary, prompt: Sequence[int]
    ) -> None:
        choices = [
            GeneratedChoice(index, vocabulary.tokens, stop=request.stop, scored=bool(request.logprobs))
            for index in range(request.choices)
        ]
        super().__init__(request, head, vocabulary, choices, len(prompt))

    def opening(self) -> bytes:
        """A chunk with the role for each choice."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        members = {"delta": delta, "logprobs": None, "finish_reason": None}
        return b"".join(self._chunk(choice.index, members) for choice in self.choices)

    def _text_chunk(self, piece: ChoiceDelta) -> dict[str, Any]:
        logprobs = self._logprobs(piece.scored) if piece.scored else None
        return {"delta": {"content": piece.text}, "logprobs": logprobs, "finish_reason": None}

    def _last_chunk(self, finish: Finish) -> dict[str, Any]:
        return {"delta": {}, "logprobs": None, "finish_reason": finish}

    def _whole(self, choice: GeneratedChoice) -> dict[str, Any]:
        return {
            "index": choice.index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": None if choice.scored is None else self._logprobs(choice.scored),
            "finish_reason": choice.finish,
        }

    def _logprobs(self, scored: Sequence[ScoredToken]) -> dict[str, Any]:
        return {"content": [self._token(item.score) for item in scored if item.score], "refusal": None}

    def _token(self, score: TokenLogprob) -> dict[str, Any]:
        top = [self._scored(token_id, logprob) for token_id, logprob in score.top]
        return {**self._scored(score.token_id, score.logprob), "top_logprobs": top}

    def _scored(self, token_id: int, logprob: float) -> dict[str, Any]:
        return {**self._vocabulary.members(token_id), "logprob": json_logprob(logprob)}
