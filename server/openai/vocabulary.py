"""A base's tokens as answers show them, and what answers need of a tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol


class DetokenizerLike(Protocol):
    """See :class:`graftwork.adapters.prompts.detokenizer.DetokenizerLike`."""

    def push(self, token_ids: Iterable[int], /) -> str: ...
    def flush(self) -> str: ...


class TokenDecoder(Protocol):
    """What answers need of :class:`graftwork.adapters.prompts.prompts.Prompts`."""

    def token_text(self, token_id: int, /) -> str: ...
    def token_bytes(self, token_id: int, /) -> bytes: ...
    def decode(self, token_ids: Sequence[int], /, *, skip_special_tokens: bool = True) -> str: ...
    def stream(self) -> DetokenizerLike: ...


class Vocabulary:
    """A base's tokens as text and bytes, each looked up once."""

    def __init__(self, tokens: TokenDecoder) -> None:
        self.tokens = tokens
        self._texts: dict[int, str] = {}
        self._members: dict[int, dict[str, Any]] = {}

    def text(self, token_id: int) -> str:
        if (known := self._texts.get(token_id)) is None:
            known = self._texts[token_id] = self.tokens.token_text(token_id)
        return known

    def members(self, token_id: int) -> dict[str, Any]:
        """``token`` and ``bytes``, as chat's log-probabilities want them. Shared: not to be changed."""
        if (known := self._members.get(token_id)) is None:
            octets = list(self.tokens.token_bytes(token_id))
            known = self._members[token_id] = {"token": self.text(token_id), "bytes": octets}
        return known
