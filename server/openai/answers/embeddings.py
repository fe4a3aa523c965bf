"""The answer to an embedding request: a list of vectors, each written when it comes."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from graftwork.server.bodies import write_json


class EmbeddingAnswer:
    """The embeddings of one request's inputs.

    Args:
        model: The name that the client used.
        graftwork: The version that answers, and how it pools.
        prompts: Token ids of the inputs.
        as_base64: Whether vectors are little-endian float32 in base64, as OpenAI's client asks for them; else numbers.
    """

    def __init__(
        self, *, model: str, graftwork: Mapping[str, str], prompts: Sequence[Sequence[int]], as_base64: bool
    ) -> None:
        self.prompts = prompts
        self._model = model
        self._graftwork = graftwork
        self._as_base64 = as_base64
        self._written = [b""] * len(prompts)

    @property
    def num_tokens(self) -> int:
        """Tokens of the inputs that have been embedded."""
        return sum(len(prompt) for prompt, written in zip(self.prompts, self._written, strict=True) if written)

    def put(self, index: int, embedding: Sequence[float]) -> None:
        """Take the embedding of input ``index``."""
        packed: Any = embedding
        if self._as_base64:
            packed = base64.b64encode(struct.pack(f"<{len(embedding)}f", *embedding)).decode()
        self._written[index] = write_json({"object": "embedding", "index": index, "embedding": packed})

    def body(self) -> bytes:
        """The whole answer as one JSON object."""
        tokens = self.num_tokens
        members = {
            "model": self._model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            "graftwork": dict(self._graftwork),
        }
        return b'{"object":"list","data":[' + b",".join(self._written) + b"]," + write_json(members)[1:]
