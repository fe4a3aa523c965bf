"""Prompts as bodies bring them: one or several, each a text or token ids."""

from __future__ import annotations

from functools import partial
from typing import Any

from pydantic import PlainValidator

from graftwork.server.bodies import body_error, json_type, reject_nul, short_repr

MAX_PROMPT_TOKENS = 2**20  # more than any model's context: the model is not resolved yet

Prompt = str | tuple[int, ...]
"""A text or token ids."""

_FORMS: Any = str | list[str] | list[int] | list[list[int]]
"""For the OpenAPI document."""


def prompts_field(*, most: int, noun: str) -> PlainValidator:
    """The validator of a field of type ``tuple[Prompt, ...]``: OpenAI's four forms become one.

    Args:
        most: Prompts of one request.
        noun: What error messages call them.
    """
    return PlainValidator(partial(_prompts, most, noun), json_schema_input_type=_FORMS)


def token_ids(value: Any, place: str = "") -> tuple[int, ...]:
    """Validate a list of token ids.

    Args:
        value: From a body.
        place: Where in the field it stands, for error messages: ``[3]``.
    """
    if not isinstance(value, list):
        raise body_error("invalid_type", f"{place} must be a list of token ids, not {json_type(value)}".lstrip())
    if not value:
        raise body_error("invalid_value", f"{place} is an empty list of token ids: give at least one")
    if len(value) > MAX_PROMPT_TOKENS:
        raise body_error("invalid_value", f"{place} has {len(value)} token ids: no model here takes that many")
    for index, item in enumerate(value):
        if type(item) is not int or item < 0:
            raise body_error("invalid_type", f"{place}[{index}] must be a token id, not {short_repr(item)}")
    return tuple(value)


def _prompts(most: int, noun: str, value: Any) -> tuple[Prompt, ...]:
    if isinstance(value, str):
        return (reject_nul(value),)
    if not isinstance(value, list):
        raise body_error("invalid_type", f"must be a string, token ids, or a list of either, not {json_type(value)}")
    if not value:
        raise body_error("invalid_value", "is an empty list: give at least one")
    if type(value[0]) is int:
        return (token_ids(value),)
    if len(value) > most:
        raise body_error("invalid_value", f"takes at most {most} {noun} in one request, got {len(value)}")
    if all(isinstance(item, str) for item in value):
        return tuple(map(reject_nul, value))
    if all(isinstance(item, list) for item in value):
        return tuple(token_ids(item, f"[{index}]") for index, item in enumerate(value))
    raise body_error("invalid_type", "must not mix kinds: a list of strings, of token ids, or of lists of token ids")
