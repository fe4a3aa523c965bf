"""One choice of an answer while it is generated: text, tool calls, log-probabilities, and how it ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from graftwork.adapters.errors import GraftworkError
from graftwork.server.engine.request import Delta, FinishReason, TokenLogprob
from graftwork.server.openai.answers.tool_calls import ToolCall, ToolCallDelta, ToolCallParser
from graftwork.server.openai.stop_strings import StopStrings
from graftwork.server.openai.vocabulary import TokenDecoder

Finish = Literal["stop", "length", "tool_calls"]
"""OpenAI's ``finish_reason``."""


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token with its log-probability.

    Attributes:
        token_id: The token.
        offset: Characters of the choice's text before it.
        score: ``None`` for a prompt's first token, which nothing predicts.
    """

    token_id: int
    offset: int
    score: TokenLogprob | None


@dataclass(frozen=True, slots=True)
class ChoiceDelta:
    """What one delta adds to a choice. With a ``finish`` it is the last one; later deltas are ignored."""

    text: str = ""
    scored: Sequence[ScoredToken] = ()
    finish: Finish | None = None
    calls: Sequence[ToolCallDelta] = ()


_EMPTY_DELTA = ChoiceDelta()


class GeneratedChoice:
    """One choice while it is generated.

    Args:
        index: Its number in the answer.
        tokens: Decodes tokens.
        stop: Stop strings.
        scored: Whether log-probabilities were requested.
        prompt: Token ids of the prompt, for ``echo``.
        echo: The prompt's text, returned before the generated text; ``None``: it is not.
        calls: Finds tool calls; ``None``: there are none.
        visible: Special tokens that are written as text.
        skip_special_tokens: Whether the others are not.

    Attributes:
        num_tokens: Generated tokens.
        num_cached: Prompt tokens that the prefix cache had.
        finish: How it ended; ``None`` before.
        prompt_scores: Log-probabilities of the prompt's tokens so far, if they were requested.
    """

    def __init__(
        self,
        index: int,
        tokens: TokenDecoder,
        *,
        stop: Sequence[str] = (),
        scored: bool = False,
        prompt: Sequence[int] = (),
        echo: str | None = None,
        calls: ToolCallParser | None = None,
        visible: Collection[int] = frozenset(),
        skip_special_tokens: bool = True,
    ) -> None:
        self.index = index
        self.num_tokens = 0
        self.num_cached = 0
        self.finish: Finish | None = None
        self._tokens = tokens
        self._prompt = prompt
        self._echo = echo
        self.prompt_scores: list[TokenLogprob | None] = []
        self._texts: list[str] = []
        self._scored: list[ScoredToken] | None = [] if scored else None
        self._calls = calls
        self._detokenizer = tokens.stream(skip_special_tokens=skip_special_tokens, visible=visible)
        self._stops = StopStrings(stop) if stop else None
        self._waiting: deque[ScoredToken] = deque()  # tokens whose text is not out yet
        self._decoded = self._written = len(echo or "")  # characters

    @property
    def text(self) -> str:
        """The text so far, without what may become a stop string."""
        return "".join(self._texts)

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the text."""
        return None if self._stops is None else self._stops.found

    @property
    def tool_calls(self) -> Sequence[ToolCall]:
        """The tool calls so far."""
        return self._calls.calls if self._calls is not None else ()

    @property
    def scored(self) -> Sequence[ScoredToken] | None:
        """Log-probabilities of the tokens so far; ``None`` if they were not requested."""
        return self._scored

    def push(self, delta: Delta) -> ChoiceDelta:
        """Add the engine's delta.

        Returns:
            What is certain now; text that may become a stop string is held back.

        Raises:
            GraftworkError: The engine failed at this request.
        """
        if self.finish is not None:
            return _EMPTY_DELTA
        if delta.finish_reason is FinishReason.ERROR:
            raise GraftworkError(delta.error or "the engine could not finish this answer: try again")
        self.num_cached += delta.num_cached
        scored: list[ScoredToken] = []
        echo = ""
        self.prompt_scores += delta.prompt_logprobs or ()
        if self._echo is not None:
            if not delta.token_ids and not delta.done:
                return _EMPTY_DELTA  # a long prompt is scored in several steps
            echo, self._echo = self._echo, None
            scored += self._score_prompt(echo)
        text = self._decode(delta)
        stopped = False
        if self._stops is not None:
            text, stopped = self._stops.push(text)
            if delta.done and not stopped:
                text += self._stops.flush()
        if stopped or delta.done:
            self.finish = "length" if delta.finish_reason is FinishReason.LENGTH and not stopped else "stop"
        self.num_tokens += len(delta.token_ids)
        self._written += len(text)
        scored += self._visible_tokens(include_all=self.finish is not None and not stopped)
        if self._scored is not None:
            self._scored += scored
        calls: Sequence[ToolCallDelta] = ()
        if self._calls is not None:
            text, calls = self._calls.push(text, last=self.finish is not None)
            if self._calls.satisfied or (self.finish == "stop" and self._calls.calls):
                self.finish = "tool_calls"
        if text := echo + text:
            self._texts.append(text)
        return ChoiceDelta(text, scored, self.finish, calls)

    def _decode(self, delta: Delta) -> str:
        if self._scored is None:
            text = self._detokenizer.push(delta.token_ids)
        else:
            text = ""
            for token_id, score in zip(delta.token_ids, delta.logprobs, strict=True):
                self._waiting.append(ScoredToken(token_id, self._decoded, score))
                part = self._detokenizer.push((token_id,))
                self._decoded += len(part)
                text += part
        return text + self._detokenizer.flush() if delta.done else text

    def _visible_tokens(self, *, include_all: bool) -> Iterator[ScoredToken]:
        """The tokens whose text begins within the released text; those of a stop string never do."""
        while self._waiting and (include_all or self._waiting[0].offset < self._written):
            yield self._waiting.popleft()

    def _score_prompt(self, echo: str) -> list[ScoredToken]:
        if self._scored is None:
            return []
        offsets = _offsets(echo, map(self._tokens.token_bytes, self._prompt))
        scores = zip(self._prompt, offsets, self.prompt_scores, strict=True)
        return [ScoredToken(token_id, offset, score) for token_id, offset, score in scores]


def _offsets(text: str, pieces: Iterable[bytes]) -> Iterator[int]:
    """Where in ``text`` each token begins, in characters.

    A token that the text does not show (a special token at its beginning) has no length. One that begins within a
    character counts from that character.
    """
    data, position, chars = text.encode(), 0, 0
    for piece in pieces:
        if not data.startswith(piece, position):
            # Many tokenizers drop the space before the first word.
            piece = piece[1:] if piece[:1] == b" " and data.startswith(piece[1:], position) else b""
        inside = _is_continuation(data[position : position + 1])
        yield chars - 1 if inside else chars
        position += len(piece)
        chars += sum(not _is_continuation(piece[at : at + 1]) for at in range(len(piece)))


def _is_continuation(octet: bytes) -> bool:
    return b"\x80" <= octet < b"\xc0"
