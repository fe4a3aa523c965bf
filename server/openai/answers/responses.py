"""The answer to ``/v1/responses``: a ``response``, whole and as its events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from graftwork.adapters.errors import GraftworkError
from graftwork.adapters.prompts.tool_calls import ToolCallFormat
from graftwork.server.bodies import write_json
from graftwork.server.openai.answers.answer import AnswerHead
from graftwork.server.openai.answers.chat import token_logprobs
from graftwork.server.openai.answers.choice import ChoiceDelta, ScoredToken
from graftwork.server.openai.answers.parts import Part, PartEvent, PartsAnswer
from graftwork.server.openai.events import event_frame
from graftwork.server.openai.requests.chat import ChatCompletionRequest
from graftwork.server.openai.vocabulary import Vocabulary


class ResponsesAnswer(PartsAnswer):
    """A ``response``.

    Args:
        request: The chat that the request became.
        head: The fields that every event and body repeats.
        vocabulary: Tokens as text.
        prompt: Token ids of the conversation.
        tool_calls: How the base writes them; ``None``: the answer has none.
        echo: The request's own fields, which a response repeats.
    """

    def __init__(
        self,
        request: ChatCompletionRequest,
        head: AnswerHead,
        vocabulary: Vocabulary,
        prompt: Sequence[int],
        tool_calls: ToolCallFormat | None,
        *,
        echo: Mapping[str, Any],
    ) -> None:
        super().__init__(request, head, vocabulary, prompt, tool_calls)
        self._vocabulary = vocabulary
        self._echo = echo
        self._scored: list[ScoredToken] = []  # tokens that no event has shown yet
        self._number = 0

    def opening(self) -> bytes:
        """The response before anything is generated."""
        response = self._response("in_progress")
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def frames(self, index: int, piece: ChoiceDelta) -> bytes:
        """See ``Answer.frames``."""
        self._scored += piece.scored
        return super().frames(index, piece)

    def closing(self) -> bytes:
        """The complete response."""
        status = self._status()
        return self._event(f"response.{status}", response=self._response(status))

    def failure(self, error: GraftworkError) -> bytes:
        """The failed response."""
        response = {**self._response("failed"), "error": {"code": "server_error", "message": error.message}}
        return self._event("response.failed", response=response)

    def body(self) -> bytes:
        """See ``Answer.body``."""
        return write_json(self._response(self._status()))

    def _status(self) -> str:
        return "incomplete" if self.choices[0].finish == "length" else "completed"

    def _response(self, status: str) -> dict[str, Any]:
        generated = status in ("completed", "incomplete")
        (choice,) = self.choices
        logprobs = token_logprobs(self._vocabulary, choice.scored or ())
        usage = usage_object(self.num_prompt_tokens, self.num_completion_tokens, self.num_cached_tokens)
        return response_object(
            id=self.head.id,
            created=self.head.created,
            model=self.head.model,
            status=status,
            output=[output_item(self.head.id, part, logprobs=logprobs) for part in self._parts.all],
            usage=usage if generated else None,
            graftwork=self.head.graftwork,
            echo=self._echo,
        )

    def _frames(self, event: PartEvent) -> bytes:
        part = event.part
        item_id = output_item_id(self.head.id, part)
        place = {"item_id": item_id, "output_index": part.index}
        if event.kind == "grows":
            if part.call is not None:
                return self._event("response.function_call_arguments.delta", **place, delta=event.text)
            scored, self._scored = token_logprobs(self._vocabulary, self._scored), []
            return self._event(
                "response.output_text.delta", **place, content_index=0, delta=event.text, logprobs=scored
            )
        begins = event.kind == "begins"
        events = b""
        if part.call is None:
            text = {"type": "output_text", "text": "" if begins else part.text, "annotations": [], "logprobs": []}
            if begins:
                item = {**output_item(self.head.id, part, in_progress=True), "content": []}
                events += self._event("response.output_item.added", output_index=part.index, item=item)
                return events + self._event("response.content_part.added", **place, content_index=0, part=text)
            events += self._event("response.output_text.done", **place, content_index=0, text=part.text, logprobs=[])
            events += self._event("response.content_part.done", **place, content_index=0, part=text)
        elif begins:
            item = {**output_item(self.head.id, part, in_progress=True), "arguments": ""}
            return self._event("response.output_item.added", output_index=part.index, item=item)
        else:
            done = {"name": part.call.name, "arguments": part.text}
            events += self._event("response.function_call_arguments.done", **place, **done)
        return events + self._event(
            "response.output_item.done", output_index=part.index, item=output_item(self.head.id, part)
        )

    def _event(self, kind: str, **members: Any) -> bytes:
        event = {"type": kind, "sequence_number": self._number, **members}
        self._number += 1
        return event_frame(kind, event)


def response_object(
    *,
    id: str,
    created: int,
    model: str,
    status: str,
    output: Sequence[Mapping[str, Any]],
    usage: Mapping[str, Any] | None,
    graftwork: Mapping[str, Any],
    echo: Mapping[str, Any],
) -> dict[str, Any]:
    """The JSON of a response. ``echo`` are the fields of its request."""
    return {
        "id": id,
        "object": "response",
        "created_at": created,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "model": model,
        "output": output,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "truncation": "disabled",
        "usage": usage,
        **echo,
        "graftwork": graftwork,
    }


def usage_object(prompt: int, completion: int, cached: int) -> dict[str, Any]:
    """The tokens of a response."""
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + completion,
    }


def output_item(
    response_id: str, part: Part, *, in_progress: bool = False, logprobs: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """The JSON of a part of a response."""
    status = "in_progress" if in_progress else "completed" if part.complete else "incomplete"
    id = output_item_id(response_id, part)
    if part.call is not None:
        function = {"name": part.call.name, "arguments": part.text, "call_id": part.call.id}
        return {"id": id, "type": "function_call", "status": status, **function}
    text = {"type": "output_text", "text": part.text, "annotations": [], "logprobs": logprobs}
    return {"id": id, "type": "message", "status": status, "role": "assistant", "content": [text]}


def output_item_id(response_id: str, part: Part) -> str:
    """The same whenever the response is shown: made of its own id."""
    kind = "msg" if part.call is None else "fc"
    return f"{kind}_{response_id.removeprefix('resp_')[:40]}_{part.index}"
