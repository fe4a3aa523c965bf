"""Prompts as tokens, and tokens as text."""

from __future__ import annotations

from typing_extensions import TypedDict


class TokenizedObject(TypedDict):
    """A prompt's tokens; ``token_strs``, their texts, where asked for."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizedObject(TypedDict):
    """The text of token ids."""

    prompt: str
