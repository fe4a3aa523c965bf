"""A vocabulary of bytes and five words."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Iterable, Sequence

WORDS = [" hello", " world", "The", " end", "<|eos|>"]


EOS = 256 + WORDS.index("<|eos|>")


class ByteStream:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_ids: Iterable[int], /) -> str:
        return "".join(self._decoder.decode(_bytes(token)) for token in token_ids if token != EOS)

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class ByteTokens:
    """A vocabulary of all bytes and a few words, with one special token."""

    def token_bytes(self, token_id: int, /) -> bytes:
        return _bytes(token_id)

    def token_text(self, token_id: int, /) -> str:
        try:
            return _bytes(token_id).decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in _bytes(token_id))

    def decode(self, token_ids: Sequence[int], /, *, skip_special_tokens: bool = True) -> str:
        kept = [token for token in token_ids if not (skip_special_tokens and token == EOS)]
        return b"".join(map(_bytes, kept)).decode(errors="replace")

    def stream(self, *, skip_special_tokens: bool = True, visible: Collection[int] = frozenset()) -> ByteStream:
        return ByteStream()


def _bytes(token_id: int) -> bytes:
    return bytes([token_id]) if token_id < 256 else WORDS[token_id - 256].encode()
