"""The answer to a completion: `text_completion`, as chunks and as a body, with echo and log-probabilities of the
prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

from graftwork.server.engine.request import TokenLogprob
from graftwork.server.openai.answers.answer import Answer, AnswerHead
from graftwork.server.openai.answers.choice import ChoiceDelta, Finish, GeneratedChoice, ScoredToken
from graftwork.server.openai.events import quote, to_json_number
from graftwork.server.openai.requests.completions import CompletionRequest
from graftwork.server.openai.vocabulary import TokenDecoder, Vocabulary


class CompletionAnswer(Answer):
    """``text_completion``, the same for chunks and bodies. Choice ``p * n + i`` is the i-th of prompt p."""

    chunk_kind = body_kind = "text_completion"

    def __init__(
        self, request: CompletionRequest, head: AnswerHead, vocabulary: Vocabulary, prompts: Sequence[Sequence[int]]
    ) -> None:
        """``prompts`` are the token ids of the request's prompts, in order."""
        choices = [
            GeneratedChoice(
                place * request.choices + number,
                vocabulary.tokens,
                stop=request.stop,
                scored=request.logprobs is not None,
                prompt=prompt,
                echo=_echoed_text(asked, vocabulary.tokens) if request.echo else None,
            )
            for place, (asked, prompt) in enumerate(zip(request.prompt, prompts, strict=True))
            for number in range(request.choices)
        ]
        super().__init__(request, head, vocabulary, choices, sum(map(len, prompts)))

    def _text_chunk(self, piece: ChoiceDelta) -> str:
        logprobs = self._logprobs(piece.scored) if piece.scored else "null"
        return f'"text":{quote(piece.text)},"logprobs":{logprobs},"finish_reason":null'

    def _last_chunk(self, finish: Finish) -> str:
        return f'"text":"","logprobs":null,"finish_reason":"{finish}"'

    def _whole(self, choice: GeneratedChoice) -> str:
        logprobs = "null" if choice.scored is None else self._logprobs(choice.scored)
        return (
            f'{{"index":{choice.index},"text":{quote(choice.text)},"logprobs":{logprobs},'
            f'"finish_reason":"{choice.finish}"}}'
        )

    def _logprobs(self, scored: Sequence[ScoredToken]) -> str:
        tokens = ",".join(self._vocabulary.quoted(item.token_id) for item in scored)
        logprobs = ",".join(to_json_number(item.score.logprob) if item.score else "null" for item in scored)
        top = ",".join(self._top(item.score) if item.score else "null" for item in scored)
        offsets = ",".join(str(item.offset) for item in scored)
        return f'{{"tokens":[{tokens}],"token_logprobs":[{logprobs}],"top_logprobs":[{top}],"text_offset":[{offsets}]}}'

    def _top(self, score: TokenLogprob) -> str:
        """The alternatives and the token itself. Of tokens that read alike the likeliest counts."""
        best: dict[str, float] = {}
        for token_id, logprob in (*score.top, (score.token_id, score.logprob)):
            best.setdefault(self._vocabulary.quoted(token_id), logprob)
        return f"{{{','.join(f'{token}:{to_json_number(logprob)}' for token, logprob in best.items())}}}"


def _echoed_text(prompt: str | Sequence[int], tokens: TokenDecoder) -> str:
    """A prompt as ``echo`` returns it."""
    return prompt if isinstance(prompt, str) else tokens.decode(prompt, skip_special_tokens=False)
