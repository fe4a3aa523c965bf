"""Embeddings of texts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Embedding:
    """The vector of the input ``index``. It has length 1."""

    index: int
    embedding: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingUsage:
    """Token counts of a request."""

    prompt_tokens: int
    total_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingOrigin:
    """What answered: ``name@version`` or the base's id, and what vectors are made of: ``mean`` or ``last``."""

    adapter: str
    pooling: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Embeddings:
    """The embeddings of all inputs, in order."""

    model: str
    data: tuple[Embedding, ...]
    usage: EmbeddingUsage
    graftwork: EmbeddingOrigin

    @property
    def vectors(self) -> tuple[tuple[float, ...], ...]:
        """The vectors alone."""
        return tuple(item.embedding for item in self.data)

    @property
    def adapter(self) -> str:
        """The version that answered, ``intents@7``, or the base's id."""
        return self.graftwork.adapter
