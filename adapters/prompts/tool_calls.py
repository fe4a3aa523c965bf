"""How a base writes tool calls, found out from its chat template; and how it is shown tools if its template has none.

A template that knows tools shows in what it makes of a conversation how the model was trained to call them. So nothing
here depends on a model's family, and a new family needs no change as long as its arguments are JSON. All other bases
are told about tools in their system message and write calls as Hermes and Qwen do (``HERMES``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Protocol

from graftwork.adapters.errors import InvalidRequest

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolCallFormat:
    """The text around the names and the arguments of tool calls.

    One call is ``opening NAME middle ARGUMENTS closing``, where the arguments are a JSON object.

    Attributes:
        between: Stands between the arguments of one call and the name of the next; ``None``: an answer has one call.
        native: Whether the chat template itself shows tools, calls and results.
        tokens: Ids of the tokens beside the vocabulary that these texts have; each such text is always that token.
    """

    opening: str
    middle: str
    closing: str
    between: str | None
    native: bool
    tokens: Mapping[str, int] = field(default_factory=dict)

    @property
    def marker(self) -> str:
        """What announces a call within an answer; empty if only an answer's beginning tells."""
        return self.opening.partition("{")[0].strip()

    @property
    def end_marker(self) -> str:
        """What ends a call; empty if nothing does but the end of the JSON."""
        return self.closing.lstrip("}").strip()

    def write(self, name: str, arguments: Mapping[str, Any]) -> str:
        """One call."""
        quoted, written = (json.dumps(value, ensure_ascii=False) for value in (name, arguments))
        return f"{self.opening}{quoted[1:-1]}{self.middle}{written}{self.closing}"

    def with_tokens(self, added: Mapping[str, int]) -> ToolCallFormat:
        """The format of a base with these added tokens."""
        texts = self.opening, self.middle, self.closing, self.between or ""
        return replace(self, tokens={token: id for token, id in added.items() if any(token in text for text in texts)})

    def pieces(self, text: str) -> list[str | int]:
        """One of the texts as plain texts and token ids in turn."""
        if not self.tokens:
            return [text] if text else []
        longest_first = sorted(self.tokens, key=len, reverse=True)
        parts = re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text)
        return [self.tokens.get(part, part) for part in parts if part]


HERMES = ToolCallFormat(
    opening='<tool_call>\n{"name": "',
    middle='", "arguments": ',
    closing="}\n</tool_call>",
    between='}\n</tool_call>\n<tool_call>\n{"name": "',
    native=False,
)
"""Of bases whose template shows no tools, and of those whose calls are not JSON."""


class Render(Protocol):
    """Renders a conversation by a base's chat template. Raises :class:`InvalidRequest` where the template fails."""

    def __call__(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Message] | None = None,
        add_generation_prompt: bool = False,
    ) -> str: ...


# ------------------------------------------------------------------------------------- what a template tells of itself
_TOOL_NAME = "ToolProbe"
_TOOL = {
    "type": "function",
    "function": {"name": _TOOL_NAME, "description": "", "parameters": {"type": "object", "properties": {}}},
}
_USER = {"role": "user", "content": "UserProbe"}
_PLAIN = {"role": "assistant", "content": "PlainProbe"}
_IDS = ("CallProbe", "CallCheck")  # of nine letters: some templates insist
_NAMES = ("NameProbe", "NameCheck")
_ARGUMENTS = re.compile(r'\{\s*"KeyProbe"\s*:\s*"ValueProbe"\s*\}')


def find_tool_call_format(render: Render, end_texts: Collection[str]) -> ToolCallFormat:
    """How a base writes tool calls.

    Args:
        render: By its chat template.
        end_texts: The tokens that end an answer, as text.
    """
    try:
        prompt = render([_USER], tools=[_TOOL], add_generation_prompt=True)
        one = render([_USER, _calling(1)], tools=[_TOOL])
        result = {"role": "tool", "content": "ResultProbe", "tool_call_id": _IDS[0], "name": _NAMES[0]}
        answered = render([_USER, _calling(1), result], tools=[_TOOL], add_generation_prompt=True)
        plain = render([_USER, _PLAIN], tools=[_TOOL])
    except InvalidRequest:
        return HERMES
    same = next((place for place, pair in enumerate(zip(prompt, one, strict=False)) if len(set(pair)) > 1), len(prompt))
    written = one[same:]
    opening, found_name, rest = written.partition(_NAMES[0])
    arguments = _ARGUMENTS.search(rest)
    if _TOOL_NAME not in prompt or "ResultProbe" not in answered or not found_name or not arguments:
        return HERMES
    closing = rest[arguments.end() :].removesuffix(plain.rpartition("PlainProbe")[2])
    for end in end_texts:
        closing = closing.partition(end)[0]
    opening = re.sub(r"^\s*(<think>)?\s*</think>\s*", "", opening)  # no thoughts, as templates write them
    middle = rest[: arguments.start()]
    if not opening or not middle or any(probe in written for probe in _IDS):
        return HERMES
    return ToolCallFormat(opening, middle, closing.rstrip(), _between(render), native=True)


def _between(render: Render) -> str | None:
    try:
        two = render([_USER, _calling(2)], tools=[_TOOL])
    except InvalidRequest:
        return None
    arguments = _ARGUMENTS.search(two)
    between, found, _ = two[arguments.end() :].partition(_NAMES[1]) if arguments else ("", "", "")
    return between if found else None


def _calling(number: int) -> Message:
    """An assistant's message with this many calls."""
    calls = [
        {"id": id, "type": "function", "function": {"name": name, "arguments": {"KeyProbe": "ValueProbe"}}}
        for id, name in zip(_IDS[:number], _NAMES, strict=False)
    ]
    return {"role": "assistant", "content": "", "tool_calls": calls}


# ------------------------------------------------------------------------------------- for templates without tools
_INSTRUCTIONS = """\
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""
"""What Hermes and Qwen 2.5 were trained with."""


def write_as_text(messages: Sequence[Message], tools: Sequence[Message], *, system: bool) -> list[Message]:
    """A conversation in which tools, calls and results are plain text, for templates that know none.

    Args:
        messages: The conversation.
        tools: OpenAI's; none may be given where the conversation has calls from before.
        system: Whether the template takes a system message. If not, the first user message begins with the tools.
    """
    conversation = list(_results_as_text(map(_calls_as_text, messages)))
    if not tools:
        return conversation
    instructions = _INSTRUCTIONS.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
    at = 0 if system else next((i for i, m in enumerate(conversation) if m["role"] == "user"), 0)
    first = conversation[at] if at < len(conversation) else None
    if first is not None and first["role"] in (("system", "developer") if system else ("user",)):
        parts = (first["content"], instructions) if system else (instructions, first["content"])
        conversation[at] = {**first, "content": "\n\n".join(filter(None, parts))}
    else:
        conversation.insert(at, {"role": "system" if system else "user", "content": instructions})
    return conversation


def _calls_as_text(message: Message) -> Message:
    if not (calls := message.get("tool_calls")):
        return message
    texts = [HERMES.write(call["function"]["name"], call["function"]["arguments"]) for call in calls]
    others = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**others, "content": "\n".join(filter(None, (message["content"], *texts)))}


def _results_as_text(messages: Iterator[Message]) -> Iterator[Message]:
    """Results that follow one another become one user's message: many templates want roles to alternate."""
    for is_result, group in groupby(messages, lambda message: message["role"] == "tool"):
        if is_result:
            texts = [f"<tool_response>\n{message['content']}\n</tool_response>" for message in group]
            yield {"role": "user", "content": "\n".join(texts)}
        else:
            yield from group
