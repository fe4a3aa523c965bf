"""One request's answer: takes the engine's deltas and writes them as server-sent events or as one JSON body. What
chunks share is prepared once, so that a chunk only escapes its text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graftwork.server.bodies import write_json
from graftwork.server.engine.request import Delta
from graftwork.server.openai.answers.choice import ChoiceDelta, Finish, GeneratedChoice
from graftwork.server.openai.events import DONE
from graftwork.server.openai.requests.generation import GenerationRequest
from graftwork.server.openai.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerHead:
    """What every chunk and body of one answer repeats. ``model`` is the name that the client used."""

    id: str
    created: int
    model: str
    fingerprint: str
    graftwork: Mapping[str, Any]

    def json(self, kind: str) -> bytes:
        """The head as JSON members, without braces."""
        members = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        written = {**members, "system_fingerprint": self.fingerprint, "graftwork": dict(self.graftwork)}
        return write_json(written)[1:-1]


# ------------------------------------------------------------------------------------------------------- answers


class Answer(ABC):
    """One request's answer, whichever of the two shapes it has."""

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
        self.head = head
        self.choices = choices
        self.num_prompt_tokens = num_prompt_tokens
        self._choices_a_prompt = request.choices
        self._vocabulary = vocabulary
        self._include_usage = request.include_usage
        self._open = b"data: {" + head.json(self.chunk_kind) + b","
        # With include_usage every chunk has the field, and only the last one a value.
        self._close = b',"usage":null}\n\n' if request.include_usage else b"}\n\n"

    @property
    def num_completion_tokens(self) -> int:
        return sum(choice.num_tokens for choice in self.choices)

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens that were not computed for any of the choices: those of one prompt share what one computed."""
        firsts = range(0, len(self.choices), self._choices_a_prompt)
        return sum(min(c.num_cached for c in self.choices[first : first + self._choices_a_prompt]) for first in firsts)

    @property
    def done(self) -> bool:
        """Whether every choice has ended."""
        return all(choice.finish is not None for choice in self.choices)

    def push(self, index: int, delta: Delta) -> ChoiceDelta:
        """Take in what the engine says of choice ``index``. See :meth:`Choice.push`."""
        return self.choices[index].push(delta)

    def opening(self) -> bytes:
        """The frames before any text."""
        return b""

    def frames(self, index: int, piece: ChoiceDelta) -> bytes:
        """A piece of choice ``index`` as server-sent events; empty if it adds nothing yet."""
        events = b""
        if piece.text or piece.scored:
            events = self._chunk(index, self._text_chunk(piece))
        if piece.finish is not None:
            events += self._chunk(index, self._last_chunk(piece.finish))
        return events

    def closing(self) -> bytes:
        """The frames after the last piece: the usage, if it was asked for, and the end mark."""
        if not self._include_usage:
            return DONE
        return self._open + b'"choices":[],"usage":' + write_json(self._usage()) + b"}\n\n" + DONE

    def body(self) -> bytes:
        """The whole answer as one JSON object."""
        members = write_json({"choices": [*map(self._whole, self.choices)], "usage": self._usage()})
        return b"{" + self.head.json(self.body_kind) + b"," + members[1:]

    def _chunk(self, index: int, members: dict[str, Any]) -> bytes:
        return self._open + b'"choices":[' + write_json({"index": index, **members}) + b"]" + self._close

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
        """A choice's members for a piece of text."""

    @abstractmethod
    def _last_chunk(self, finish: Finish) -> dict[str, Any]:
        """A choice's members for how it ended."""

    @abstractmethod
    def _whole(self, choice: GeneratedChoice) -> dict[str, Any]:
        """A choice as an object of the body."""
