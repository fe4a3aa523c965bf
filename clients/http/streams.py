"""Incremental parsing of server-sent events and JSON lines, in linear time.

The readers do no I/O: both clients feed them with bytes. Events end with a blank line, and lines with LF or CRLF.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from graftwork.clients.errors import GraftworkProtocolError, InterruptedAnswerError
from graftwork.clients.http.calls import StreamChunk
from graftwork.clients.http.wire import parse
from graftwork.clients.types.generation import (
    ChatDelta,
    ChatLogprobs,
    CompletionChoice,
    CompletionDelta,
    ToolCallDelta,
    Usage,
)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class _ChunkMessage:
    role: str | None = None
    content: str | None = None
    tool_calls: tuple[ToolCallDelta, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class _ChatChunkChoice:
    index: int
    delta: _ChunkMessage
    finish_reason: str | None = None
    logprobs: ChatLogprobs | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatChunk:
    """An event of a streamed chat answer. The last one has the usage and no choices."""

    id: str | None = None
    choices: tuple[_ChatChunkChoice, ...]
    usage: Usage | None = None

    def deltas(self) -> list[ChatDelta]:
        """Return what the event adds to each choice."""
        return [
            ChatDelta(
                index=choice.index,
                text=choice.delta.content or "",
                finish_reason=choice.finish_reason,
                logprobs=choice.logprobs,
                tool_calls=choice.delta.tool_calls,
            )
            for choice in self.choices
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionChunk:
    """An event of a streamed completion. The last one has the usage and no choices."""

    id: str | None = None
    choices: tuple[CompletionChoice, ...]
    usage: Usage | None = None

    def deltas(self) -> list[CompletionDelta]:
        """Return what the event adds to each choice."""
        return [
            CompletionDelta(
                index=choice.index,
                text=choice.text,
                finish_reason=choice.finish_reason,
                logprobs=choice.logprobs,
            )
            for choice in self.choices
        ]


class LineReader:
    """Splits bytes into lines, at line feeds only, which JSON strings never contain."""

    def __init__(self) -> None:
        self._line = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Add bytes, and yield the lines that are complete."""
        self._line += data
        if b"\n" in data:
            *lines, self._line = self._line.split(b"\n")
            yield from map(bytes, lines)


class EventReader(Generic[T]):
    """Parses the server-sent events of one response.

    Args:
        chunk: the type of an event's data.

    Attributes:
        id: the id of the answer, from the first event on.
        usage: the token counts, from the last event on.
        done: whether the end marker has arrived.
    """

    def __init__(self, chunk: type[StreamChunk[T]]) -> None:
        self._chunk = chunk
        self._line = bytearray()  # the line that is not complete yet
        self._data: list[bytes] = []  # the data lines of the event that is not complete yet
        self.id: str | None = None
        self.usage: Usage | None = None
        self.done = False

    def feed(self, data: bytes) -> Iterator[T]:
        """Add bytes, and yield the deltas of the events that are complete.

        Raises:
            InterruptedAnswerError: if the server reports an error.
            GraftworkProtocolError: if an event cannot be read.
        """
        for payload in self._events(data):
            if payload == b"[DONE]":
                self.done = True
            else:
                yield from self._read(payload)

    def _events(self, data: bytes) -> Iterator[bytes]:
        self._line += data
        if b"\n" not in data:
            return
        *lines, self._line = self._line.split(b"\n")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(bytes(line[5:].removeprefix(b" ")))
            elif not line and self._data:
                yield b"\n".join(self._data)
                self._data.clear()

    def _read(self, payload: bytes) -> Sequence[T]:
        try:
            body = json.loads(payload)
        except ValueError as error:
            raise GraftworkProtocolError(f"the stream carried {payload[:200]!r}, which is no JSON") from error
        if isinstance(body, dict) and isinstance(error_fields := body.get("error"), dict):
            raise InterruptedAnswerError(
                error_fields.get("message") or "the server broke the answer off and did not say why",
                status=200,
                type=error_fields.get("type"),
                param=error_fields.get("param"),
                code=error_fields.get("code"),
            )
        chunk = parse(self._chunk, body)
        self.id = chunk.id or self.id
        self.usage = chunk.usage or self.usage
        return chunk.deltas()
