"""OpenAI's chat messages, parsed strictly: roles, text parts, tool calls with their results, well-formed Unicode."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from graftwork.adapters.errors import InvalidRequest

ROLES = ("system", "developer", "user", "assistant")
"""The roles a message may have, beside ``tool`` where there are tools.

A template that does not mention ``developer``, the newest one, gets ``system``.
"""

_MEDIA = {
    **dict.fromkeys(("image_url", "input_image", "image"), "images"),
    **dict.fromkeys(("input_audio", "audio_url", "audio"), "audio"),
    **dict.fromkeys(("video_url", "input_video", "video"), "video"),
    **dict.fromkeys(("file", "input_file", "document"), "files"),
}
"""What parts of contents hold that is no text, by their types in OpenAI's and other APIs."""

_EXTRA_FIELDS = frozenset({"name", "reasoning_content"})


def read_conversation(messages: Sequence[Any]) -> list[dict[str, Any]]:
    """Parse messages that may have tool calls (``tool_calls`` of the assistant) and results (role ``tool``).

    Returns:
        The messages as chat templates take them: contents are strings, arguments of calls objects, and each result
        has the ``name`` of its function.

    Raises:
        InvalidRequest: A message is invalid; ``param`` names the field.
    """
    functions: dict[str, str] = {}  # by the id of the call
    conversation = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        role = message.get("role") if isinstance(message, Mapping) else None
        if role == "tool":
            conversation.append(_read_result(message, where, functions))
            continue
        calls = message.get("tool_calls") if role == "assistant" else None
        if calls:
            message = {key: value for key, value in message.items() if key != "tool_calls"}
            if message.get("content") is None:
                message["content"] = ""  # which every template takes, as opposed to null
        fields: dict[str, Any] = dict(read_message(index, message))
        if calls:
            fields["tool_calls"] = list(_read_calls(calls, f"{where}.tool_calls"))
            functions |= {call["id"]: call["function"]["name"] for call in fields["tool_calls"]}
        conversation.append(fields)
    return conversation


def read_message(index: int, message: Any) -> dict[str, str]:
    """Parse a message without tools: every value becomes a string of valid Unicode, the content's parts are joined.

    Args:
        index: Of the message, for error messages.
        message: What was sent.

    Raises:
        InvalidRequest: It is invalid; ``param`` names the field.
    """
    where = f"messages[{index}]"
    if not isinstance(message, Mapping):
        raise InvalidRequest(f"{where} must be an object with role and content.", param=where)
    role = message.get("role")
    if role not in ROLES:
        raise InvalidRequest(f"{where}.role is {role!r}; it must be one of {', '.join(ROLES)}.", param=f"{where}.role")
    fields = {
        "role": str(role),
        "content": check_unicode(_flatten(message.get("content"), where), f"{where}.content"),
    }
    for key, value in message.items():
        if (
            key in fields or value is None or value == []
        ):  # clients send back their answers with every unused field empty
            continue
        if key not in _EXTRA_FIELDS:
            raise InvalidRequest(f"{where}.{key} is not supported. Leave it out.", param=f"{where}.{key}")
        if not isinstance(value, str):
            raise InvalidRequest(f"{where}.{key} must be a string.", param=f"{where}.{key}")
        fields[key] = check_unicode(value, f"{where}.{key}")
    return fields


def _read_result(message: Mapping[str, Any], where: str, functions: Mapping[str, str]) -> dict[str, Any]:
    id = message.get("tool_call_id")
    if not isinstance(id, str) or id not in functions:
        raise InvalidRequest(
            f"{where}.tool_call_id is {id!r}, which is the id of no tool call before it. Send the assistant's message "
            "with its tool_calls before their results.",
            param=f"{where}.tool_call_id",
        )
    content = message.get("content")
    text = "" if content is None or content == [] else check_unicode(_flatten(content, where), f"{where}.content")
    return {"role": "tool", "content": text, "tool_call_id": id, "name": functions[id]}


def _read_calls(calls: Any, where: str) -> Iterator[dict[str, Any]]:
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise InvalidRequest(f"{where} must be a list of tool calls.", param=where)
    for number, call in enumerate(calls):
        place = f"{where}[{number}]"
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise InvalidRequest(
                f'{place} must be an object like {{"id": "…", "type": "function", "function": {{"name": "…", '
                '"arguments": "{…}"}}.',
                param=place,
            )
        arguments = _read_arguments(function.get("arguments"), f"{place}.function.arguments")
        name = check_unicode(function["name"], f"{place}.function.name")
        id = call.get("id")
        yield {
            "id": check_unicode(id, f"{place}.id") if isinstance(id, str) else f"call_{number}",
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }


def _read_arguments(arguments: Any, where: str) -> dict[str, Any]:
    """OpenAI's arguments are the text of a JSON object; templates want the object. No text means none."""
    if isinstance(arguments, str):
        check_unicode(arguments, where)
        try:
            arguments = json.loads(arguments or "{}")
            check_unicode(json.dumps(arguments, ensure_ascii=False), where)  # escapes may stand for half a pair
        except (ValueError, RecursionError):
            raise InvalidRequest(f"{where} must be the text of a JSON object; it is no JSON.", param=where) from None
    if not isinstance(arguments, Mapping):
        raise InvalidRequest(f"{where} must be the text of a JSON object, not of {_described(arguments)}.", param=where)
    return dict(arguments)


def _flatten(content: Any, where: str) -> str:
    """OpenAI's content as one string. Text parts are joined by line breaks, as in other servers."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise InvalidRequest(
            f"{where}.content must be a string or a list of text parts, not {_described(content)}.",
            param=f"{where}.content",
        )
    texts = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if isinstance(kind, str) and kind in _MEDIA:
            raise InvalidRequest(
                f"{where}.content[{number}] is of type {kind!r}, and bases here read only text, no {_MEDIA[kind]}. "
                "Leave the part out, or say in a text part what it holds.",
                param=f"{where}.content[{number}].type",
            )
        if kind != "text":
            raise InvalidRequest(
                f"{where}.content[{number}] is of type {kind!r}; only text parts are supported.",
                param=f"{where}.content[{number}].type",
            )
        if not isinstance(part.get("text"), str):
            raise InvalidRequest(
                f"{where}.content[{number}].text must be a string.", param=f"{where}.content[{number}].text"
            )
        texts.append(part["text"])
    return "\n".join(texts)


def _described(value: Any) -> str:
    return "null" if value is None else "an empty list" if value == [] else f"a {type(value).__name__}"


def check_unicode(text: str, where: str) -> str:
    """``text``, if it is valid Unicode: JSON can contain half of a surrogate pair, which no tokenizer takes.

    Raises:
        InvalidRequest: It is not; ``where`` names the field.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{where} holds half of a surrogate pair (\\u{ord(text[error.start]):04x}). Send valid Unicode.",
            param=where,
        ) from error
    return text
