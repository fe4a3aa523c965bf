"""OpenAI's chat messages, parsed strictly: roles, text parts and well-formed Unicode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graftwork.adapters.errors import InvalidRequest

ROLES = ("system", "developer", "user", "assistant")
"""The roles a message may have. A template that does not mention ``developer``, the newest one, gets ``system``."""

_EXTRA_FIELDS = frozenset({"name", "reasoning_content"})


def read_message(index: int, message: Any) -> dict[str, str]:
    """Parse a message: every value becomes a string of valid Unicode, and the content's parts are joined.

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
