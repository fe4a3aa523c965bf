"""The grammar of an answer that calls tools: in the base's format, with arguments that keep to each tool's schema."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from graftwork.server.engine.request import ToolCallsSpec

#: Of one answer. Without a bound small models go on with calls for ever.
MAX_CALLS = 16


def tool_calls_grammar(
    spec: ToolCallsSpec, *, arguments: Mapping[str, Any], answer: Mapping[str, Any], as_text: bool
) -> str:
    """The grammar in llguidance's Lark.

    Args:
        spec: What the answer has to look like.
        arguments: How the JSON of arguments is written.
        answer: How the JSON of an answer without calls is written.
        as_text: Write tokens that are named by their ids as text.
    """

    def literal(pieces: Iterable[str | int]) -> str:
        if as_text:
            pieces = [_text(pieces)]
        return " ".join(_quoted(piece) if isinstance(piece, str) else f"<[{piece}]>" for piece in pieces if piece != "")

    def schema(value: Mapping[str, Any], options: Mapping[str, Any]) -> str:
        return f"%json {json.dumps({**value, 'x-guidance': options}, ensure_ascii=False)}"

    rules = [f"call: {' | '.join(f'call_{number}' for number in range(len(spec.tools)))}"]
    for number, tool in enumerate(spec.tools):
        rules.append(f"call_{number}: {_quoted(tool.name)} {literal(spec.middle)} arguments_{number}")
        rules.append(f"arguments_{number}: {schema(tool.parameters, arguments)}")
    marker = literal(spec.marker)
    more = "" if spec.between is None else f"({literal(spec.between)} call){{0,{MAX_CALLS - 1}}}"
    if spec.is_free and marker and _text(spec.between or ()).startswith(_text(spec.closing)):
        more = ""  # the next call is announced by its marker, as the first one is
    rules.append(f"calls: {literal(spec.opening)} call {more} {literal(spec.closing)}")
    is_token = bool(spec.marker) and isinstance(spec.marker[0], int) and not as_text
    if spec.required:
        rules.append(f"start: {marker} calls")
    elif spec.answer is not None:
        rules += [f"start: {marker} calls | answer", f"answer: {schema(spec.answer, answer)}"]
    elif not marker:
        rules += ["start: calls | TEXT?", r"TEXT: /[^{](.|\n)*/"]
    else:
        repeat = "?" if spec.between is None else f"{{0,{MAX_CALLS}}}"
        # A token never is part of a text. A marker that is text ends the text as soon as it stands there ("lazy").
        announced = f"TEXT? {marker}" if is_token else "announced"
        rules += [f"start: ({announced} calls){repeat} tail", "tail: TEXT?", r"TEXT: /(.|\n)+/"]
        if not is_token:
            rules.append(f"announced[lazy]: /(.|\\n)*/ {marker}")
    return "\n".join(reversed(rules))


def _text(pieces: Iterable[str | int]) -> str:
    return "".join(piece if isinstance(piece, str) else f"<token {piece}>" for piece in pieces)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
