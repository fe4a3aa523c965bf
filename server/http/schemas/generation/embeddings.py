"""OpenAI's list of embeddings. ``server/openai/answers/embeddings.py`` writes it without building these objects."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict


class EmbeddingObject(TypedDict):
    """One input's vector, of length 1: numbers, or their bytes as little-endian float32 in base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsageObject(TypedDict):
    """Tokens read for one request."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingOriginObject(TypedDict):
    """The version that answered, ``name@version`` or the base's id, and how hidden states became one vector."""

    adapter: str
    pooling: Literal["mean", "last"]


class EmbeddingListObject(TypedDict):
    """The embeddings of all inputs, in order."""

    object: Literal["list"]
    data: list[EmbeddingObject]
    model: str
    usage: EmbeddingUsageObject
    graftwork: EmbeddingOriginObject
