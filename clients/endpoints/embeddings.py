"""Embeddings of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from graftwork.clients.endpoints.parts import reader_of, without_none
from graftwork.clients.http.calls import SLOW_TIMEOUT, Call, CallRequest
from graftwork.clients.types.embeddings import Embeddings


def embed(
    model: str,
    input: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]],
    *,
    pooling: Literal["mean", "last"] | None = None,
    dimensions: int | None = None,
    user: str | None = None,
) -> Call[Embeddings]:
    """Embed texts: a vector of length 1 for each.

    Args:
        model: the base, an adapter, a version or an alias: ``intents``, ``intents@7``, ``intents@candidate``.
        input: a text or token ids, or several of either.
        pooling: what a vector is made of: the hidden states' mean (the server's default), or those of the last token.
        dimensions: the width that is expected; any other than the model's is an error.
        user: the person that it is for.

    Raises:
        BadRequestError: if an input or an option is invalid, or an input is too long.
        NotFoundError: if there is no such model.
        OverloadedError: if the server's queue is full.
    """
    texts = input if isinstance(input, str) else [item if isinstance(item, str | int) else list(item) for item in input]
    body = {"model": model, "input": texts, **without_none(pooling=pooling, dimensions=dimensions, user=user)}
    request = CallRequest(method="POST", path="/v1/embeddings", json=body, idempotent=True, read_timeout=SLOW_TIMEOUT)
    return Call(request=request, read=reader_of(Embeddings))
