"""The routes that need the engine or the tokenizer."""

from __future__ import annotations

from fastapi import APIRouter

from graftwork.server.generation.embeddings import EmbeddingService
from graftwork.server.generation.service import GenerationService
from graftwork.server.generation.tokenization import Tokenization
from graftwork.server.http.auth import Authenticator
from graftwork.server.http.routes.generation import chat, embeddings, messages, responses, tokenization
from graftwork.server.http.services import Records


def add(
    routes: APIRouter,
    authenticator: Authenticator,
    service: GenerationService,
    embedding_service: EmbeddingService,
    tokenizer: Tokenization,
    records: Records,
) -> None:
    """Add the routes of generation, embeddings and tokenization."""
    chat.add(routes, authenticator, service)
    responses.add(routes, authenticator, service, records)
    messages.add(routes, authenticator, service, tokenizer)
    embeddings.add(routes, authenticator, embedding_service)
    tokenization.add(routes, authenticator, tokenizer)
