"""Incremental detokenization: token ids to text, without ever emitting part of a UTF-8 character."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from graftwork.adapters.errors import ConfigurationError


class IncrementalDetokenizer:
    """Detokenizes one answer token by token, in linear time.

    The pieces joined are ``Prompts.decode`` of all tokens. Bytes that are no UTF-8 become U+FFFD once that is certain.

    Args:
        pieces: The bytes of every token.
        skipped: Tokens without text.
    """

    def __init__(self, pieces: TokenBytes, skipped: frozenset[int]) -> None:
        self._pieces = pieces
        self._skipped = skipped
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._started = False

    def push(self, token_ids: Iterable[int]) -> str:
        """Add tokens; returns the text that is complete with them, perhaps none."""
        text = ""
        for token_id in token_ids:
            if token_id in self._skipped:
                continue
            if self._started:
                text += self._decoder.decode(self._pieces.inside(token_id))
            else:
                text += self._decoder.decode(self._pieces.first(token_id))
                self._started = bool(self._pieces.inside(token_id))
        return text

    def flush(self) -> str:
        """The rest of the text, after the last token: U+FFFD if it is part of a character."""
        return self._decoder.decode(b"", final=True)


class TokenBytes:
    """The bytes of every token: at the start of a text, where many tokenizers drop a leading space, and inside one.

    Byte-level decoders map each character of a token to a byte. Sentencepiece-like ones write single bytes as
    ``<0xE2>``. Other tokens are decoded by the tokenizer itself, after an ordinary token, so that what a decoder does
    to the first token of a text does not affect them.

    Raises:
        ConfigurationError: The tokenizer's decoder needs later tokens, so that it cannot be streamed.
    """

    def __init__(self, tokenizer: Tokenizer, decoder: Mapping[str, Any] | None) -> None:
        steps = _decoder_steps(decoder)
        kinds = {step["type"] for step in steps}
        lookahead = kinds & {"BPEDecoder", "CTC"} or {step["type"] for step in steps if step.get("stop")}
        if lookahead or ("ByteLevel" in kinds and not kinds <= {"ByteLevel", "Fuse"}):
            raise ConfigurationError(
                f"This base's tokenizer decodes with {' + '.join(step['type'] for step in steps)}, "
                "which cannot be streamed token by token. Choose another base."
            )
        self._tokenizer = tokenizer
        self._byte_level = "ByteLevel" in kinds
        self._byte_fallback = "ByteFallback" in kinds
        self._inside: dict[int, bytes] = {}

    def inside(self, token_id: int) -> bytes:
        """The bytes that the token adds to a text that has begun."""
        piece = self._inside.get(token_id)
        if piece is None:
            piece = self._inside[token_id] = self._compute(token_id)
        return piece

    def first(self, token_id: int) -> bytes:
        """The bytes of the token at the beginning of a text."""
        raw = self._raw_byte(token_id)
        if self._byte_level or (raw is not None and raw >= b"\x80"):
            return self.inside(token_id)
        return self._decode(token_id).encode()

    def _compute(self, token_id: int) -> bytes:
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if self._byte_level:
            mapped = [_BYTE_OF_CHARACTER.get(character) for character in token]
            return token.encode() if None in mapped else bytes(byte for byte in mapped if byte is not None)
        raw = self._raw_byte(token_id)
        if raw is not None:
            return raw
        anchor, anchor_text = self._anchor
        return self._decode(anchor, token_id)[len(anchor_text) :].encode()

    def _raw_byte(self, token_id: int) -> bytes | None:
        """The byte of a token like ``<0xE2>``, if the decoder reads it so."""
        token = self._tokenizer.id_to_token(token_id) if self._byte_fallback else None
        if token is None or len(token) != 6 or not (token.startswith("<0x") and token.endswith(">")):
            return None
        try:
            return bytes.fromhex(token[3:5])
        except ValueError:
            return None

    @cached_property
    def _anchor(self) -> tuple[int, str]:
        """An ordinary token and its text, to decode others behind it."""
        for token_id in sorted(self._tokenizer.get_vocab(with_added_tokens=False).values()):
            text = self._decode(token_id)
            if text.isalnum() and self._decode(token_id, token_id).startswith(text):
                return token_id, text
        raise ConfigurationError("This base's tokenizer holds no token that is plain text. Fetch the base again.")

    def _decode(self, *token_ids: int) -> str:
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=False)
        return text


def _decoder_steps(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [step for inner in decoder["decoders"] for step in _decoder_steps(inner)]
    return [decoder]


def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes are themselves, the other 68 are the characters from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + number): byte for number, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_of_character()
