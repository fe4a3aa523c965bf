"""A base's tokens as answers show them, and the protocol of a tokenizer that they need."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Protocol


class DetokenizerLike(Protocol):
    """The protocol of ``graftwork.adapters.prompts.detokenizer.DetokenizerLike``."""

    def push(self, token_ids: Iterable[int], /) -> str:
        """Add tokens; returns the text that is complete with them."""

    def flush(self) -> str:
        """The rest of the text, after the last token."""


class TokenDecoder(Protocol):
    """The part of ``graftwork.adapters.prompts.prompts.Prompts`` that answers need."""

    def token_text(self, token_id: int, /) -> str:
        """One token as text, for log-probabilities; ``bytes:…`` if it is none by itself."""

    def token_bytes(self, token_id: int, /) -> bytes:
        """One token as the bytes that it adds to a text."""

    def decode(self, token_ids: Sequence[int], /, *, skip_special_tokens: bool = True) -> str:
        """Tokens as text."""

    def stream(self, *, skip_special_tokens: bool = True, visible: Collection[int] = frozenset()) -> DetokenizerLike:
        """A detokenizer for one answer. It may skip special tokens, but for those that are ``visible``."""


class Vocabulary:
    """A base's tokens as text and bytes, each computed once."""

    def __init__(self, tokens: TokenDecoder) -> None:
        self.tokens = tokens
        self._texts: dict[int, str] = {}
        self._members: dict[int, dict[str, Any]] = {}

    def text(self, token_id: int) -> str:
        """A token as text."""
        if (cached := self._texts.get(token_id)) is None:
            cached = self._texts[token_id] = self.tokens.token_text(token_id)
        return cached

    def members(self, token_id: int) -> dict[str, Any]:
        r"""``token`` and ``bytes`` of a token, as chat's log-probabilities have them. Shared: not to be changed.

        OpenAI's chats write a part of a character as ``\xe2\x82``, its completions as ``bytes:\xe2\x82``.
        """
        if (cached := self._members.get(token_id)) is None:
            octets = self.tokens.token_bytes(token_id)
            token = octets.decode(errors="backslashreplace")
            cached = self._members[token_id] = {"token": token, "bytes": list(octets)}
        return cached
