"""A base's tokens as JSON, each written once, and what answers need of a tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from graftwork.server.openai.events import quote


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
    """A base's tokens as JSON, each written once."""

    def __init__(self, tokens: TokenDecoder) -> None:
        self.tokens = tokens
        self._quoted: dict[int, str] = {}
        self._members: dict[int, str] = {}

    def quoted(self, token_id: int) -> str:
        """The token as a JSON string."""
        if (known := self._quoted.get(token_id)) is None:
            known = self._quoted[token_id] = quote(self.tokens.token_text(token_id))
        return known

    def members(self, token_id: int) -> str:
        """``"token": …, "bytes": …`` as chat's log-probabilities want them."""
        if (known := self._members.get(token_id)) is None:
            octets = ",".join(map(str, self.tokens.token_bytes(token_id)))
            known = self._members[token_id] = f'"token":{self.quoted(token_id)},"bytes":[{octets}]'
        return known
