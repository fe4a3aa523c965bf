"""The parts of an answer, texts and tool calls, in the order in which they were generated."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from graftwork.adapters.prompts.tool_calls import ToolCallFormat
from graftwork.server.engine.request import Delta
from graftwork.server.openai.answers.answer import Answer, AnswerHead
from graftwork.server.openai.answers.chat import chat_choices
from graftwork.server.openai.answers.choice import ChoiceDelta
from graftwork.server.openai.answers.tool_calls import ToolCall
from graftwork.server.openai.requests.chat import ChatCompletionRequest
from graftwork.server.openai.vocabulary import Vocabulary


@dataclass(slots=True)
class Part:
    """A text, or a tool call.

    Attributes:
        index: Its number in the answer.
        call: ``None``: it is a text.
        text: So far; of a call, its arguments.
        complete: Whether it ended by itself, not with the last token that was allowed.
    """

    index: int
    call: ToolCall | None = None
    text: str = ""
    complete: bool = False


@dataclass(frozen=True, slots=True)
class PartEvent:
    """A part begins, gets more text or ends."""

    kind: Literal["begins", "grows", "ends"]
    part: Part
    text: str = ""


class Parts:
    """Collects the parts of one choice. An answer without any text has one empty text at its end."""

    def __init__(self) -> None:
        self.all: list[Part] = []
        self._open: Part | None = None

    def push(self, piece: ChoiceDelta) -> Iterator[PartEvent]:
        """Add a piece of the choice; yields what happens to its parts."""
        if piece.text:
            if self._open is None or self._open.call is not None:
                yield from self._begin(None)
            yield self._grow(piece.text)
        for delta in piece.calls:
            if delta.begins is not None:
                yield from self._begin(delta.begins)
            if delta.arguments:
                yield self._grow(delta.arguments)
        if piece.finish is not None:
            if not self.all:
                yield from self._begin(None)
            yield from self._end(complete=piece.finish != "length")

    def _begin(self, call: ToolCall | None) -> Iterator[PartEvent]:
        yield from self._end(complete=True)
        self._open = Part(len(self.all), call)
        self.all.append(self._open)
        yield PartEvent("begins", self._open)

    def _grow(self, text: str) -> PartEvent:
        assert self._open is not None
        self._open.text += text
        return PartEvent("grows", self._open, text)

    def _end(self, *, complete: bool) -> Iterator[PartEvent]:
        if self._open is not None:
            self._open.complete = complete
            yield PartEvent("ends", self._open)
            self._open = None


class PartsAnswer(Answer):
    """An answer of one choice whose events are about its parts. The arguments are those of ``ChatAnswer``."""

    def __init__(
        self,
        request: ChatCompletionRequest,
        head: AnswerHead,
        vocabulary: Vocabulary,
        prompt: Sequence[int],
        tool_calls: ToolCallFormat | None,
    ) -> None:
        super().__init__(request, head, chat_choices(request, vocabulary, tool_calls), len(prompt))
        self._parts = Parts()
        self._events: list[PartEvent] = []  # of the piece that was pushed last

    def push(self, index: int, delta: Delta) -> ChoiceDelta:
        """See ``Answer.push``."""
        piece = super().push(index, delta)
        self._events = list(self._parts.push(piece))
        return piece

    def frames(self, index: int, piece: ChoiceDelta) -> bytes:
        """See ``Answer.frames``. ``piece`` is the one that was pushed last."""
        return b"".join(map(self._frames, self._events))

    @abstractmethod
    def _frames(self, event: PartEvent) -> bytes:
        """What happens to a part as server-sent events."""
