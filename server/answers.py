"""OpenAI's answers out of what the engine says: bodies, stream chunks, log-probabilities, stop strings.

An :class:`Answer` holds one :class:`Choice` per continuation. ``push`` turns the engine's delta into a :class:`Piece`
of text that is certain (no half characters, no part of a stop string); ``frames`` writes a piece as server-sent events,
``body`` the whole as one JSON object. A stream makes one chunk per token and choice, so whatever chunks share is
prepared once and only the text is escaped anew.

Knows nothing of sockets, queues, adapters or how tokens come about.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from json import dumps
from json.encoder import encode_basestring
from typing import Any, Literal, Protocol

from graftwork.adapters.errors import GraftworkError
from graftwork.server.engine.request import Delta, FinishReason, TokenLogprob
from graftwork.server.schemas import ChatCompletionRequest, CompletionRequest, Generation

DONE = b"data: [DONE]\n\n"
Finish = Literal["stop", "length"]

_IMPOSSIBLE = -9999.0  # OpenAI's word for a probability of zero, which JSON cannot say
_LINE_BREAKS = str.maketrans({"\u0085": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})


class Detokenizer(Protocol):
    """See :class:`graftwork.adapters.prompts.Detokenizer`."""

    def push(self, token_ids: Iterable[int], /) -> str: ...
    def flush(self) -> str: ...


class Tokens(Protocol):
    """What answers need of :class:`graftwork.adapters.prompts.Prompts`."""

    def token_text(self, token_id: int, /) -> str: ...
    def token_bytes(self, token_id: int, /) -> bytes: ...
    def decode(self, token_ids: Sequence[int], /, *, skip_special_tokens: bool = True) -> str: ...
    def stream(self) -> Detokenizer: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """What every chunk and body of one answer repeats. ``model`` is the name that the client used."""

    id: str
    created: int
    model: str
    fingerprint: str
    graftwork: Mapping[str, Any]

    def json(self, kind: str) -> str:
        """The head as JSON members, without braces."""
        members = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return _object({**members, "system_fingerprint": self.fingerprint, "graftwork": dict(self.graftwork)})[1:-1]


@dataclass(frozen=True, slots=True)
class Scored:
    """A token with its log-probability; ``None`` for a prompt's first token, which nothing predicts.

    ``offset`` counts the characters of the choice's text before the token.
    """

    token_id: int
    offset: int
    score: TokenLogprob | None


@dataclass(frozen=True, slots=True)
class Piece:
    """What one delta adds to a choice. With a ``finish`` it is the last, whatever else the engine may still send."""

    text: str = ""
    scored: Sequence[Scored] = ()
    finish: Finish | None = None


_NOTHING = Piece()


class Vocabulary:
    """A base's tokens as JSON, each written once."""

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens
        self._quoted: dict[int, str] = {}
        self._members: dict[int, str] = {}

    def quoted(self, token_id: int) -> str:
        """The token as a JSON string."""
        if (known := self._quoted.get(token_id)) is None:
            known = self._quoted[token_id] = quote(self.tokens.token_text(token_id))
        return known

    def members(self, token_id: int) -> str:
        """``"token": …, "bytes": …`` as chat's log-probabilities want them."""
        if (known := self._members.get(token_id)) is None:
            octets = ",".join(map(str, self.tokens.token_bytes(token_id)))
            known = self._members[token_id] = f'"token":{self.quoted(token_id)},"bytes":[{octets}]'
        return known


# -------------------------------------------------------------------------------------------------- stop strings


class StopStrings:
    """Finds the first stop string in a text that arrives in pieces, whatever the pieces.

    The one that is complete first ends the text; of two that end together the longer one does. Held back is only what
    may still become a stop string: fewer characters than the longest of them.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """The text that is now certain, and whether a stop string ended it. After that, push no more."""
        text = self._held + text
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)[1]], True
        cut = min((_tail(text, stop) for stop in self._stops), default=len(text))
        self._held = text[cut:]
        return text[:cut], False

    def flush(self) -> str:
        """What was held back, now that the text ended before it became a stop string."""
        held, self._held = self._held, ""
        return held


def _tail(text: str, stop: str) -> int:
    """Where the longest end of ``text`` begins that is a beginning of ``stop``; the text's length if there is none."""
    start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while start >= 0 and not stop.startswith(text[start:]):
        start = text.find(stop[0], start + 1)
    return start if start >= 0 else len(text)


# ------------------------------------------------------------------------------------------------------- choices


class Choice:
    """One continuation as it is written: its text so far, its tokens' scores, how many tokens it took, how it ended.

    ``num_cached`` of its prompt's tokens did not have to be computed.
    """

    def __init__(
        self,
        index: int,
        tokens: Tokens,
        *,
        stop: Sequence[str] = (),
        scored: bool = False,
        prompt: Sequence[int] = (),
        echo: str | None = None,
    ) -> None:
        self.index = index
        self.num_tokens = 0
        self.num_cached = 0
        self.finish: Finish | None = None
        self._tokens = tokens
        self._prompt = prompt
        self._echo = echo
        self._prompt_scores: list[TokenLogprob | None] = []
        self._texts: list[str] = []
        self._scored: list[Scored] | None = [] if scored else None
        self._detokenizer = tokens.stream()
        self._stops = StopStrings(stop) if stop else None
        self._waiting: deque[Scored] = deque()  # tokens whose text is not out yet
        self._decoded = self._written = len(echo or "")  # characters

    @property
    def text(self) -> str:
        return "".join(self._texts)

    @property
    def scored(self) -> Sequence[Scored] | None:
        return self._scored

    def push(self, delta: Delta) -> Piece:
        """The part of ``delta`` that is certain now. Raises :class:`GraftworkError` when the engine gave up."""
        if self.finish is not None:
            return _NOTHING
        if delta.finish_reason is FinishReason.ERROR:
            raise GraftworkError(delta.error or "the engine could not finish this answer: try again")
        self.num_cached += delta.num_cached
        scored: list[Scored] = []
        echo = ""
        if self._echo is not None:
            self._prompt_scores += delta.prompt_logprobs or ()
            if not delta.token_ids and not delta.done:
                return _NOTHING  # a long prompt is scored in several steps
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
        scored += self._settled(everything=self.finish is not None and not stopped)
        if self._scored is not None:
            self._scored += scored
        if text := echo + text:
            self._texts.append(text)
        return Piece(text, scored, self.finish)

    def _decode(self, delta: Delta) -> str:
        if self._scored is None:
            text = self._detokenizer.push(delta.token_ids)
        else:
            text = ""
            for token_id, score in zip(delta.token_ids, delta.logprobs, strict=True):
                self._waiting.append(Scored(token_id, self._decoded, score))
                part = self._detokenizer.push((token_id,))
                self._decoded += len(part)
                text += part
        return text + self._detokenizer.flush() if delta.done else text

    def _settled(self, *, everything: bool) -> Iterator[Scored]:
        """The tokens whose text begins within what is written; those of a stop string never do."""
        while self._waiting and (everything or self._waiting[0].offset < self._written):
            yield self._waiting.popleft()

    def _score_prompt(self, echo: str) -> list[Scored]:
        if self._scored is None:
            return []
        offsets = _offsets(echo, map(self._tokens.token_bytes, self._prompt))
        scores = zip(self._prompt, offsets, self._prompt_scores, strict=True)
        return [Scored(token_id, offset, score) for token_id, offset, score in scores]


def _offsets(text: str, pieces: Iterable[bytes]) -> Iterator[int]:
    """Where in ``text`` each token begins, in characters.

    A token that the text does not show (one that marks its beginning) has no length. One that begins within a character
    counts from that character.
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


# ------------------------------------------------------------------------------------------------------- answers


class Answer(ABC):
    """One request's answer, whichever of the two shapes it has."""

    chunk_kind: str
    body_kind: str

    def __init__(
        self, request: Generation, head: Head, vocabulary: Vocabulary, choices: Sequence[Choice], num_prompt_tokens: int
    ) -> None:
        self.head = head
        self.choices = choices
        self.num_prompt_tokens = num_prompt_tokens
        self._choices_a_prompt = request.choices
        self._vocabulary = vocabulary
        self._include_usage = request.include_usage
        self._open = f"data: {{{head.json(self.chunk_kind)},"
        # With include_usage every chunk has the field, and only the last one a value.
        self._close = ',"usage":null}\n\n' if request.include_usage else "}\n\n"

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

    def push(self, index: int, delta: Delta) -> Piece:
        """Take in what the engine says of choice ``index``. See :meth:`Choice.push`."""
        return self.choices[index].push(delta)

    def opening(self) -> bytes:
        """The frames before any text."""
        return b""

    def frames(self, index: int, piece: Piece) -> bytes:
        """A piece of choice ``index`` as server-sent events; empty if it adds nothing yet."""
        events = ""
        if piece.text or piece.scored:
            events = self._chunk(index, self._text_chunk(piece))
        if piece.finish is not None:
            events += self._chunk(index, self._last_chunk(piece.finish))
        return events.encode()

    def closing(self) -> bytes:
        """The frames after the last piece: the usage, if it was asked for, and the end mark."""
        if not self._include_usage:
            return DONE
        return f'{self._open}"choices":[],"usage":{self._usage()}}}\n\n'.encode() + DONE

    def body(self) -> bytes:
        """The whole answer as one JSON object."""
        choices = ",".join(map(self._whole, self.choices))
        return f'{{{self.head.json(self.body_kind)},"choices":[{choices}],"usage":{self._usage()}}}'.encode()

    def _chunk(self, index: int, members: str) -> str:
        return f'{self._open}"choices":[{{"index":{index},{members}}}]{self._close}'

    def _usage(self) -> str:
        prompt, completion = self.num_prompt_tokens, self.num_completion_tokens
        return (
            f'{{"prompt_tokens":{prompt},"completion_tokens":{completion},"total_tokens":{prompt + completion},'
            f'"prompt_tokens_details":{{"cached_tokens":{self.num_cached_tokens}}}}}'
        )

    @abstractmethod
    def _text_chunk(self, piece: Piece) -> str:
        """A choice's members for a piece of text."""

    @abstractmethod
    def _last_chunk(self, finish: Finish) -> str:
        """A choice's members for how it ended."""

    @abstractmethod
    def _whole(self, choice: Choice) -> str:
        """A choice as an object of the body."""


class ChatAnswer(Answer):
    """``chat.completion`` and ``chat.completion.chunk``."""

    chunk_kind = "chat.completion.chunk"
    body_kind = "chat.completion"

    def __init__(
        self, request: ChatCompletionRequest, head: Head, vocabulary: Vocabulary, prompt: Sequence[int]
    ) -> None:
        choices = [
            Choice(index, vocabulary.tokens, stop=request.stop, scored=bool(request.logprobs))
            for index in range(request.choices)
        ]
        super().__init__(request, head, vocabulary, choices, len(prompt))

    def opening(self) -> bytes:
        members = '"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null'
        return "".join(self._chunk(choice.index, members) for choice in self.choices).encode()

    def _text_chunk(self, piece: Piece) -> str:
        logprobs = self._logprobs(piece.scored) if piece.scored else "null"
        return f'"delta":{{"content":{quote(piece.text)}}},"logprobs":{logprobs},"finish_reason":null'

    def _last_chunk(self, finish: Finish) -> str:
        return f'"delta":{{}},"logprobs":null,"finish_reason":"{finish}"'

    def _whole(self, choice: Choice) -> str:
        message = f'{{"role":"assistant","content":{quote(choice.text)},"refusal":null}}'
        logprobs = "null" if choice.scored is None else self._logprobs(choice.scored)
        return f'{{"index":{choice.index},"message":{message},"logprobs":{logprobs},"finish_reason":"{choice.finish}"}}'

    def _logprobs(self, scored: Sequence[Scored]) -> str:
        return f'{{"content":[{",".join(self._token(item.score) for item in scored if item.score)}],"refusal":null}}'

    def _token(self, score: TokenLogprob) -> str:
        top = ",".join(f"{{{self._members(token_id, logprob)}}}" for token_id, logprob in score.top)
        return f'{{{self._members(score.token_id, score.logprob)},"top_logprobs":[{top}]}}'

    def _members(self, token_id: int, logprob: float) -> str:
        return f'{self._vocabulary.members(token_id)},"logprob":{_number(logprob)}'


class CompletionAnswer(Answer):
    """``text_completion``, the same for chunks and bodies. Choice ``p * n + i`` is the i-th of prompt p."""

    chunk_kind = body_kind = "text_completion"

    def __init__(
        self, request: CompletionRequest, head: Head, vocabulary: Vocabulary, prompts: Sequence[Sequence[int]]
    ) -> None:
        """``prompts`` are the token ids of the request's prompts, in order."""
        choices = [
            Choice(
                place * request.choices + number,
                vocabulary.tokens,
                stop=request.stop,
                scored=request.logprobs is not None,
                prompt=prompt,
                echo=_shown(asked, vocabulary.tokens) if request.echo else None,
            )
            for place, (asked, prompt) in enumerate(zip(request.prompt, prompts, strict=True))
            for number in range(request.choices)
        ]
        super().__init__(request, head, vocabulary, choices, sum(map(len, prompts)))

    def _text_chunk(self, piece: Piece) -> str:
        logprobs = self._logprobs(piece.scored) if piece.scored else "null"
        return f'"text":{quote(piece.text)},"logprobs":{logprobs},"finish_reason":null'

    def _last_chunk(self, finish: Finish) -> str:
        return f'"text":"","logprobs":null,"finish_reason":"{finish}"'

    def _whole(self, choice: Choice) -> str:
        logprobs = "null" if choice.scored is None else self._logprobs(choice.scored)
        return (
            f'{{"index":{choice.index},"text":{quote(choice.text)},"logprobs":{logprobs},'
            f'"finish_reason":"{choice.finish}"}}'
        )

    def _logprobs(self, scored: Sequence[Scored]) -> str:
        tokens = ",".join(self._vocabulary.quoted(item.token_id) for item in scored)
        logprobs = ",".join(_number(item.score.logprob) if item.score else "null" for item in scored)
        top = ",".join(self._top(item.score) if item.score else "null" for item in scored)
        offsets = ",".join(str(item.offset) for item in scored)
        return f'{{"tokens":[{tokens}],"token_logprobs":[{logprobs}],"top_logprobs":[{top}],"text_offset":[{offsets}]}}'

    def _top(self, score: TokenLogprob) -> str:
        """The alternatives and the token itself. Of tokens that read alike the likeliest counts."""
        best: dict[str, float] = {}
        for token_id, logprob in (*score.top, (score.token_id, score.logprob)):
            best.setdefault(self._vocabulary.quoted(token_id), logprob)
        return f"{{{','.join(f'{token}:{_number(logprob)}' for token, logprob in best.items())}}}"


def error_frame(error: GraftworkError) -> bytes:
    """What ends a stream that has begun and cannot go on."""
    return f"data: {_object(error.body())}\n\n".encode()


def quote(text: str) -> str:
    """``text`` as a JSON string that also survives clients which split events at any of Unicode's line breaks."""
    quoted = encode_basestring(text)
    return quoted if quoted.isascii() else quoted.translate(_LINE_BREAKS)


def _shown(prompt: str | Sequence[int], tokens: Tokens) -> str:
    """A prompt as ``echo`` returns it."""
    return prompt if isinstance(prompt, str) else tokens.decode(prompt, skip_special_tokens=False)


def _object(value: Mapping[str, Any]) -> str:
    return dumps(value, ensure_ascii=True, separators=(",", ":"))


def _number(logprob: float) -> str:
    """Nine digits are all that a float32 has."""
    return f"{max(logprob, _IMPOSSIBLE) if math.isfinite(logprob) else _IMPOSSIBLE:.9g}"
