"""The answer to a chat completion: `chat.completion` and `chat.completion.chunk`."""

from __future__ import annotations

from collections.abc import Sequence

from graftwork.server.engine.request import TokenLogprob
from graftwork.server.openai.answers.answer import Answer, AnswerHead
from graftwork.server.openai.answers.choice import ChoiceDelta, Finish, GeneratedChoice, ScoredToken
from graftwork.server.openai.events import quote, to_json_number
from graftwork.server.openai.requests.chat import ChatCompletionRequest
from graftwork.server.openai.vocabulary import Vocabulary


class ChatAnswer(Answer):
    """``chat.completion`` and ``chat.completion.chunk``."""

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
        members = '"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null'
        return "".join(self._chunk(choice.index, members) for choice in self.choices).encode()

    def _text_chunk(self, piece: ChoiceDelta) -> str:
        logprobs = self._logprobs(piece.scored) if piece.scored else "null"
        return f'"delta":{{"content":{quote(piece.text)}}},"logprobs":{logprobs},"finish_reason":null'

    def _last_chunk(self, finish: Finish) -> str:
        return f'"delta":{{}},"logprobs":null,"finish_reason":"{finish}"'

    def _whole(self, choice: GeneratedChoice) -> str:
        message = f'{{"role":"assistant","content":{quote(choice.text)},"refusal":null}}'
        logprobs = "null" if choice.scored is None else self._logprobs(choice.scored)
        return f'{{"index":{choice.index},"message":{message},"logprobs":{logprobs},"finish_reason":"{choice.finish}"}}'

    def _logprobs(self, scored: Sequence[ScoredToken]) -> str:
        return f'{{"content":[{",".join(self._token(item.score) for item in scored if item.score)}],"refusal":null}}'

    def _token(self, score: TokenLogprob) -> str:
        top = ",".join(f"{{{self._members(token_id, logprob)}}}" for token_id, logprob in score.top)
        return f'{{{self._members(score.token_id, score.logprob)},"top_logprobs":[{top}]}}'

    def _members(self, token_id: int, logprob: float) -> str:
        return f'{self._vocabulary.members(token_id)},"logprob":{to_json_number(logprob)}'
