"""The answer to a completion: ``text_completion``, whole and in chunks, with echo and the prompt's scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graftwork.server.engine.request import TokenLogprob
from graftwork.server.openai.answers.answer import AnswerHead, ChunkedAnswer
from graftwork.server.openai.answers.choice import ChoiceDelta, Finish, GeneratedChoice, ScoredToken
from graftwork.server.openai.events import json_logprob
from graftwork.server.openai.requests.completions import CompletionRequest
from graftwork.server.openai.vocabulary import TokenDecoder, Vocabulary


class CompletionAnswer(ChunkedAnswer):
    """``text_completion``, the same for chunks and bodies. Choice ``p * n + i`` is the i-th of prompt p.

    ``prompts`` are the token ids of the request's prompts, in order.
    """

    chunk_kind = body_kind = "text_completion"

    def __init__(
        self, request: CompletionRequest, head: AnswerHead, vocabulary: Vocabulary, prompts: Sequence[Sequence[int]]
    ) -> None:
        choices = [
            GeneratedChoice(
                place * request.choices + number,
                vocabulary.tokens,
                stop=request.stop,
                scored=request.logprobs is not None,
                prompt=prompt,
                echo=_echoed_text(original, vocabulary.tokens) if request.echo else None,
                skip_special_tokens=not request.shows_special_tokens,
            )
            for place, (original, prompt) in enumerate(zip(request.prompt, prompts, strict=True))
            for number in range(request.choices)
        ]
        super().__init__(request, head, vocabulary, choices, sum(map(len, prompts)))
        self._num_logprobs = request.logprobs

    def _text_chunk(self, piece: ChoiceDelta) -> dict[str, Any]:
        logprobs = self._logprobs(piece.scored) if piece.scored else None
        return {"text": piece.text, "logprobs": logprobs, "finish_reason": None}

    def _last_chunk(self, finish: Finish) -> dict[str, Any]:
        return {"text": "", "logprobs": None, "finish_reason": finish}

    def _whole(self, choice: GeneratedChoice) -> dict[str, Any]:
        return {
            "index": choice.index,
            "text": choice.text,
            "logprobs": None if choice.scored is None else self._logprobs(choice.scored),
            "finish_reason": choice.finish,
            **self._prompt_logprobs(choice),
        }

    def _logprobs(self, scored: Sequence[ScoredToken]) -> dict[str, Any]:
        scores = [item.score for item in scored]
        return {
            "tokens": [self._vocabulary.text(item.token_id) for item in scored],
            "token_logprobs": [None if score is None else json_logprob(score.logprob) for score in scores],
            "top_logprobs": [None if score is None else self._top(score) for score in scores],
            "text_offset": [item.offset for item in scored],
        }

    def _top(self, score: TokenLogprob) -> dict[str, float]:
        """The alternatives and the token itself. Of tokens with the same text the most likely counts."""
        best: dict[str, float] = {}
        for token_id, logprob in (*score.top[: self._num_logprobs], (score.token_id, score.logprob)):
            best.setdefault(self._vocabulary.text(token_id), json_logprob(logprob))
        return best


def _echoed_text(prompt: str | Sequence[int], tokens: TokenDecoder) -> str:
    """The text of a prompt, for ``echo``."""
    return prompt if isinstance(prompt, str) else tokens.decode(prompt, skip_special_tokens=False)
