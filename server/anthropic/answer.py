"""The answer to ``/v1/messages``: a ``message``, whole and as its events."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from graftwork.adapters.errors import GraftworkError
from graftwork.server.anthropic.errors import body_of
from graftwork.server.bodies import write_json
from graftwork.server.openai.answers.parts import Part, PartEvent, PartsAnswer
from graftwork.server.openai.events import event_frame


class MessageAnswer(PartsAnswer):
    """A ``message`` of Anthropic's. The arguments are those of ``ChatAnswer``."""

    def opening(self) -> bytes:
        """The message before any content."""
        usage = {"input_tokens": self.num_prompt_tokens, "output_tokens": 0}
        return _event("message_start", message={**self._message([], None, None), "usage": usage})

    def closing(self) -> bytes:
        """Why it stopped, the tokens of all, and the end."""
        delta = {"stop_reason": self._stop_reason(), "stop_sequence": self.choices[0].stop_string}
        return _event("message_delta", delta=delta, usage=self._usage()) + _event("message_stop")

    def failure(self, error: GraftworkError) -> bytes:
        """An error event."""
        return _event(**body_of(error))

    def body(self) -> bytes:
        """See ``Answer.body``."""
        content = [_block(part) for part in self._parts.all]
        message = self._message(content, self._stop_reason(), self.choices[0].stop_string)
        return write_json({**message, "usage": self._usage()})

    def _frames(self, event: PartEvent) -> bytes:
        part, call = event.part, event.part.call
        if event.kind == "begins":
            block: dict[str, Any] = {"type": "text", "text": ""}
            if call is not None:
                block = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
            return _event("content_block_start", index=part.index, content_block=block)
        if event.kind == "grows":
            text = {"type": "text_delta", "text": event.text}
            delta = text if call is None else {"type": "input_json_delta", "partial_json": event.text}
            return _event("content_block_delta", index=part.index, delta=delta)
        return _event("content_block_stop", index=part.index)

    def _message(
        self, content: Sequence[dict[str, Any]], stop_reason: str | None, stop_sequence: str | None
    ) -> dict[str, Any]:
        return {
            "id": self.head.id,
            "type": "message",
            "role": "assistant",
            "model": self.head.model,
            "content": content,
            "stop_reason": stop_reason,
            "stop_sequence": stop_sequence,
            "graftwork": dict(self.head.graftwork),
        }

    def _stop_reason(self) -> str:
        choice = self.choices[0]
        if choice.finish == "length":
            return "max_tokens"
        if choice.finish == "tool_calls":
            return "tool_use"
        return "end_turn" if choice.stop_string is None else "stop_sequence"

    def _usage(self) -> dict[str, Any]:
        """Anthropic counts the tokens of the prompt that were cached apart from those that were not."""
        cached = self.num_cached_tokens
        return {
            "input_tokens": self.num_prompt_tokens - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": self.num_completion_tokens,
        }


def _block(part: Part) -> dict[str, Any]:
    if part.call is None:
        return {"type": "text", "text": part.text}
    try:
        arguments = json.loads(part.text)
    except ValueError:  # the tokens ran out
        arguments = {}
    return {"type": "tool_use", "id": part.call.id, "name": part.call.name, "input": arguments}


def _event(type: str, **members: Any) -> bytes:
    return event_frame(type, {"type": type, **members})
