"""Finds tool calls in the text of an answer while it is generated."""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from graftwork.adapters.prompts.tool_calls import ToolCallFormat
from graftwork.server.openai.stop_strings import begins_within

_NAME = re.compile(r"[\w.:/-]*")
_ID_CHARACTERS = string.ascii_letters + string.digits

#: What follows the arguments of a call is looked at so far for its end.
_MAX_CLOSING_CHARS = 256


@dataclass(slots=True)
class ToolCall:
    """A call as far as it has come. ``arguments`` is the text of a JSON object, as the model wrote it."""

    id: str
    name: str
    arguments: str = ""

    def as_json(self) -> dict[str, Any]:
        """The call as OpenAI's messages have it."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(slots=True)
class ToolCallDelta:
    """What a piece of text adds to the call number ``index``; ``begins`` it or goes on with it."""

    index: int
    begins: ToolCall | None
    arguments: str = ""


def mint_call_id() -> str:
    """A new id of a call."""
    return "call_" + "".join(secrets.choice(_ID_CHARACTERS) for _ in range(24))


class ToolCallParser:
    """Separates tool calls from text, wherever the text is cut.

    Calls written exactly in the base's format are passed on piece by piece. Those between its markers but with other
    white space or order come whole when they end. What turns out to be no call is text. White space around calls is
    dropped.

    Args:
        format: The base's.
        parallel: Whether there may be more than one call.
        mint_id: Makes the ids of calls.

    Attributes:
        calls: So far.
    """

    def __init__(
        self, format: ToolCallFormat, *, parallel: bool = True, mint_id: Callable[[], str] = mint_call_id
    ) -> None:
        self.calls: list[ToolCall] = []
        self._format = format
        self._opening = format.opening.lstrip()
        self._parallel = parallel
        self._mint_id = mint_id
        self._read: Callable[[bool], bool] = self._read_text
        self._buffer = ""  # what nothing is known about yet
        self._content = ""  # text that the next return of push has
        self._deltas: list[ToolCallDelta] = []  # likewise
        self._spaces = ""  # white space that is dropped if a call follows
        self._only_spaces = True  # since the beginning, or since the last call
        self._depth = 0  # of objects and lists within the arguments
        self._in_string = self._escaped = False

    @property
    def satisfied(self) -> bool:
        """Whether the only call that may be made is complete."""
        return not self._parallel and bool(self.calls) and self._read in (self._read_closing, self._read_text)

    def push(self, text: str, *, last: bool = False) -> tuple[str, list[ToolCallDelta]]:
        """Add a piece of the answer.

        Args:
            text: The piece.
            last: Whether the answer ends with it.

        Returns:
            The text that certainly is not part of a call, and what is added to calls.
        """
        self._buffer += text
        while not self.satisfied and self._read(last):
            pass
        if last and not self.calls:
            self._content += self._spaces
        content, deltas = self._content, self._deltas
        self._content, self._deltas = "", []
        return content, deltas

    # Each of these takes what it can from the buffer. It returns whether to read on: if not, more text is needed.

    def _read_text(self, last: bool) -> bool:
        """Text, up to where a call begins."""
        marker = self._format.marker
        if not marker:
            return self._read_beginning(last)
        if (start := self._buffer.find(marker)) >= 0:
            self._release(self._take(start))
            self._read = self._read_opening
            return True
        self._release(self._take(len(self._buffer) if last else begins_within(self._buffer, marker)))
        return False

    def _read_beginning(self, last: bool) -> bool:
        """The beginning of an answer, which alone tells whether it is a call."""
        text = self._buffer.lstrip()
        if self._only_spaces and not self.calls:
            if text.startswith(self._opening):
                self._buffer = text
                self._read = self._read_opening
                return True
            if self._opening.startswith(text) and not last:
                return False
        self._release(self._take(len(self._buffer)))
        return False

    def _read_opening(self, last: bool) -> bool:
        if self._buffer.startswith(self._opening):
            self._take(len(self._opening))
            self._read = self._read_name
        elif self._opening.startswith(self._buffer) and self._may_wait(last):
            return False
        else:
            self._read = self._read_loosely
        return True

    def _read_name(self, last: bool) -> bool:
        """A name, all that stands before the arguments, and their first brace."""
        found = _NAME.match(self._buffer)
        assert found is not None  # it may be empty
        rest, middle = self._buffer[found.end() :], self._format.middle
        arguments = rest[len(middle) :].lstrip()
        if found[0] and rest.startswith(middle) and arguments.startswith("{"):
            self._buffer = arguments
            self._begin(found[0])
            self._read = self._read_arguments
        elif (middle.startswith(rest) or (rest.startswith(middle) and not arguments)) and self._may_wait(last):
            return False
        else:
            self._buffer = self._opening + self._buffer
            self._read = self._read_loosely
        return True

    def _read_arguments(self, last: bool) -> bool:
        for place, character in enumerate(self._buffer):
            if self._in_string:
                self._in_string = self._escaped or character != '"'
                self._escaped = character == "\\" and not self._escaped
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self._go_on(self._take(place + 1))
                    self._read = self._read_closing
                    return True
        self._go_on(self._take(len(self._buffer)))
        return False

    def _read_closing(self, last: bool) -> bool:
        closing, between, end = self._format.closing, self._format.between, self._format.end_marker
        if self._buffer.startswith(closing):
            self._take(len(closing))
            self._read = self._read_text
        elif between and self._buffer.startswith(between):
            self._take(len(between))
            self._read = self._read_name
        elif not last and any((text or "").startswith(self._buffer) for text in (closing, between)):
            return False
        elif end and (place := self._buffer.find(end)) >= 0:
            self._take(place + len(end))
            self._read = self._read_text
        elif last:
            self._take(len(self._buffer))
            return False
        elif end and len(self._buffer) < _MAX_CLOSING_CHARS:
            return False
        else:
            self._read = self._read_text
        return True

    def _read_loosely(self, last: bool) -> bool:
        """Anything that begins as a call does, up to the marker of its end."""
        start, end = self._format.marker, self._format.end_marker
        place = self._buffer.find(end) if start and end else -1
        if place < 0 and start and end and not last:
            return False
        text = self._take(place + len(end)) if place >= 0 else self._take(len(self._buffer))
        calls = _calls_in(text.removeprefix(start).removesuffix(end)) if start and end else None
        if calls is None:
            self._release(text)
        for name, arguments in calls or ():
            self._begin(name)
            self._go_on(arguments)
        self._read = self._read_text
        return True

    def _may_wait(self, last: bool) -> bool:
        """Whether the rest of a call's beginning may come. What the end cut off behind another call is dropped."""
        if last and self.calls:
            self._buffer = ""
        return not last or bool(self.calls)

    def _begin(self, name: str) -> None:
        call = ToolCall(self._mint_id(), name)
        self._deltas.append(ToolCallDelta(len(self.calls), call))
        self.calls.append(call)
        self._spaces, self._only_spaces = "", True
        self._depth, self._in_string, self._escaped = 0, False, False

    def _go_on(self, arguments: str) -> None:
        index = len(self.calls) - 1
        self.calls[index].arguments += arguments
        if not self._deltas or self._deltas[-1].index != index:
            self._deltas.append(ToolCallDelta(index, None))
        self._deltas[-1].arguments += arguments

    def _take(self, size: int) -> str:
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken

    def _release(self, text: str) -> None:
        """Text that is part of no call; white space at its end waits for what follows."""
        text = self._spaces + text
        if self.calls and self._only_spaces:
            text = text.lstrip()
        kept = text.rstrip()
        self._spaces = text[len(kept) :]
        self._only_spaces = self._only_spaces and not kept
        self._content += kept


def _calls_in(text: str) -> list[tuple[str, str]] | None:
    """Names and arguments of a call, or a list of calls, that is JSON; ``None`` if it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    calls = []
    for call in value if isinstance(value, list) else [value]:
        if not isinstance(call, dict) or not isinstance(name := call.get("name"), str):
            return None
        arguments = call.get("arguments", call.get("parameters", {}))
        if not isinstance(arguments, dict):
            return None
        calls.append((name, json.dumps(arguments, ensure_ascii=False)))
    return calls
