"""One request's answer: the engine's deltas as server-sent events or as one JSON body.

What chunks have in common is serialized once, so that a chunk only serializes its text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graftwork.adapters.errors import GraftworkError
from graftwork.server.bodies import write_json
from graftwork.server.engine.request import Delta, TokenLogprob
from graftwork.server.openai.answers.choice import ChoiceDelta, Finish, GeneratedChoice
from graftwork.server.openai.answers.tool_calls import ToolCallDelta
from graftwork.server.openai.events import DONE, error_frame, json_logprob
from graftwork.server.openai.requests.generation import GenerationRequest
from graftwork.server.openai.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerHead:
    """The fields that every chunk and body of one answer repeats.

    Attributes:
        id: The answer's.
        created: Unix time in seconds.
        model: The name that the client used.
        fingerprint: OpenAI's ``system_fingerprint``.
        graftwork: The version that answers, and the arm of an experiment.
    """

    id: str
    created: int
    model: str
    fingerprint: str
    graftwork: Mapping[str, Any]

    def json(self, kind: str) -> bytes:
        """The head as JSON members, without braces. ``kind`` is the object's type."""
        members = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        written = {**members, "system_fingerprint": self.fingerprint, "graftwork": dict(self.graftwork)}
        return write_json(written)[1:-1]


class Answer(ABC):
    """One request's answer, of any route.

    Args:
        request: The parsed body.
        head: The fields that every event and body repeats.
        choices: In the order of the engine's inputs.
        num_prompt_tokens: Of all prompts.
    """

    def __init__(
        self, request: GenerationRequest, head: AnswerHead, choices: Sequence[GeneratedChoice], num_prompt_tokens: int
    ) -> None:
        self.head = head
        self.choices = choices
        self.num_prompt_tokens = num_prompt_tokens
        self._choices_a_prompt = request.choices

    @property
    def num_completion_tokens(self) -> int:
        """Generated tokens of all choices."""
        return sum(choice.num_tokens for choice in self.choices)

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens that were not computed for any choice: the choices of one prompt share what one computed."""
        firsts = range(0, len(self.choices), self._choices_a_prompt)
        return sum(min(c.num_cached for c in self.choices[first : first + self._choices_a_prompt]) for first in firsts)

    @property
    def done(self) -> bool:
        """Whether every choice has ended."""
        return all(choice.finish is not None for choice in self.choices)

    def push(self, index: int, delta: Delta) -> ChoiceDelta:
        """Add the engine's delta of choice ``index``. See ``GeneratedChoice.push``."""
        return self.choices[index].push(delta)

    def opening(self) -> bytes:
        """The events before any text."""
        return b""

    @abstractmethod
    def frames(self, index: int, piece: ChoiceDelta) -> bytes:
        """A piece of choice ``index`` as server-sent events; empty if it adds nothing yet."""

    @abstractmethod
    def closing(self) -> bytes:
        """The events after the last piece."""

    def failure(self, error: GraftworkError) -> bytes:
        """The events that end a stream which failed."""
        return error_frame(error)

    @abstractmethod
    def body(self) -> bytes:
        """The whole answer as one JSON object."""


class ChunkedAnswer(Answer):
    """The answer to a chat or a completion, whose events are chunks of it.

    Args:
        request: The parsed body.
        head: The fields that every chunk and body repeats.
        vocabulary: Tokens as text, for log-probabilities.
        choices: In the order of the engine's inputs.
        num_prompt_tokens: Of all prompts.

    Attributes:
        chunk_kind: ``object`` of a chunk.
        body_kind: ``object`` of the body.
    """

    chunk_kind: str
    body_kind: str

    def __init__(
        self,
        request: GenerationRequest,
        head: AnswerHead,
        vocabulary: Vocabulary,
        choices: Sequence[GeneratedChoice],
        num_prompt_tokens: int,
    ) -> None:
        super().__init__(request, head, choices, num_prompt_tokens)
        self._vocabulary = vocabulary
        self._include_usage = request.include_usage
        self._continuous_usage = request.continuous_usage
        self._num_prompt_logprobs = request.prompt_logprobs
        self._open = b"data: {" + head.json(self.chunk_kind) + b","
        # With include_usage every chunk has the field, and only the last one a value.
        self._close = b',"usage":null}\n\n' if request.include_usage else b"}\n\n"

    def frames(self, index: int, piece: ChoiceDelta) -> bytes:
        events = b""
        if piece.text or piece.scored:
            events = self._chunk(index, self._text_chunk(piece))
        if piece.calls:
            events += self._chunk(index, self._calls_chunk(piece.calls))
        if piece.finish is not None:
            events += self._chunk(index, self._last_chunk(piece.finish))
        return events

    def closing(self) -> bytes:
        """The usage, if it was requested, and the end mark."""
        if not self._include_usage:
            return DONE
        return self._open + b'"choices":[],"usage":' + write_json(self._usage()) + b"}\n\n" + DONE

    def body(self) -> bytes:
        choices = [*map(self._whole, self.choices)]
        members = write_json({"choices": choices, "usage": self._usage(), **self._more()})
        return b"{" + self.head.json(self.body_kind) + b"," + members[1:]

    def _more(self) -> dict[str, Any]:
        """Further members of the body."""
        return {}

    def _prompt_logprobs(self, choice: GeneratedChoice) -> dict[str, Any]:
        """vLLM's ``prompt_logprobs`` as a member, where it was asked for.

        For each token of the prompt its log-probability and those of the likeliest, by token id; the first has none. A
        rank is known of the likeliest alone.
        """
        if (most := self._num_prompt_logprobs) is None:
            return {}

        def shown(token_id: int, logprob: float, rank: int | None) -> dict[str, Any]:
            text = self._vocabulary.text(token_id)
            return {"logprob": json_logprob(logprob), "rank": rank, "decoded_token": text}

        def position(score: TokenLogprob) -> dict[str, Any]:
            top = {
                str(token_id): shown(token_id, logprob, rank)
                for rank, (token_id, logprob) in enumerate(score.top[:most], 1)
            }
            own = str(score.token_id)
            return {own: top.get(own) or shown(score.token_id, score.logprob, None), **top}

        return {"prompt_logprobs": [None if score is None else position(score) for score in choice.prompt_scores]}

    def _chunk(self, index: int, members: dict[str, Any]) -> bytes:
        close = b',"usage":' + write_json(self._usage()) + b"}\n\n" if self._continuous_usage else self._close
        return self._open + b'"choices":[' + write_json({"index": index, **members}) + b"]" + close

    def _usage(self) -> dict[str, Any]:
        prompt, completion = self.num_prompt_tokens, self.num_completion_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": self.num_cached_tokens},
        }

    @abstractmethod
    def _text_chunk(self, piece: ChoiceDelta) -> dict[str, Any]:
        """The members of a choice for a piece of text."""

    def _calls_chunk(self, calls: Sequence[ToolCallDelta]) -> dict[str, Any]:
        """The members of a choice for a piece of tool calls, of answers that can have them."""
        raise NotImplementedError

    @abstractmethod
    def _last_chunk(self, finish: Finish) -> dict[str, Any]:
        """The members of a choice for its finish reason."""

    @abstractmethod
    def _whole(self, choice: GeneratedChoice) -> dict[str, Any]:
        """The JSON of a whole choice."""
