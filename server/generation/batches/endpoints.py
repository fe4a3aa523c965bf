"""The endpoints that a batch may have: how a request's body is read, and how it is answered. One line for each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.feedback.ids import IdKind
from graftwork.server.bodies import parse
from graftwork.server.generation.embeddings import EmbeddingService
from graftwork.server.generation.service import GenerationService
from graftwork.server.openai.answers.responses import ResponsesAnswer
from graftwork.server.openai.requests.chat import ChatCompletionRequest
from graftwork.server.openai.requests.completions import CompletionRequest
from graftwork.server.openai.requests.embeddings import EmbeddingRequest
from graftwork.server.openai.requests.generation import GenerationRequest
from graftwork.server.openai.requests.responses import ResponsesRequest


class RequestBody(Protocol):
    """A parsed body."""

    @property
    def num_answers(self) -> int:
        """How many answers the engine computes for it at once."""


@dataclass(frozen=True, slots=True)
class AnsweringServices:
    """What answers the requests of all endpoints."""

    generation: GenerationService
    embeddings: EmbeddingService


@dataclass(frozen=True, slots=True)
class BatchEndpoint:
    """One endpoint. Both functions raise what its route answers with.

    Attributes:
        parse: Reads a body.
        answer: From the services, a parsed body, the id of the caller's key and the body's bytes in number to the body
            of the answer. It may be cancelled, and is called again then.
    """

    parse: Callable[[bytes], RequestBody]
    answer: Callable[[AnsweringServices, Any, str, int], Awaitable[bytes]]


async def _generate(
    kind: IdKind, services: AnsweringServices, body: GenerationRequest, key_id: str, num_bytes: int
) -> bytes:
    service = services.generation
    return await service.answer(
        service.admit(kind, body, session=body.session, key_id=key_id, num_bytes=num_bytes, episode=body.episode)
    )


async def _embed(services: AnsweringServices, body: EmbeddingRequest, key_id: str, num_bytes: int) -> bytes:
    active = await services.embeddings.start(body, key_id=key_id, background=True)
    answer = await services.embeddings.collect(active)
    return answer.body()


def _parse_response(raw: bytes) -> ResponsesRequest:
    asked = parse(ResponsesRequest, raw)
    if asked.previous_response_id is not None:
        raise InvalidRequest(
            "previous_response_id is not supported in batches: send the history as input",
            param="previous_response_id",
            code="unsupported_parameter",
        )
    return asked


async def _respond(services: AnsweringServices, asked: ResponsesRequest, key_id: str, num_bytes: int) -> bytes:
    service = services.generation
    body, make_answer = asked.chat(), partial(ResponsesAnswer, echo=asked.echo())
    return await service.answer(
        service.admit(
            "resp",
            body,
            session=body.session,
            key_id=key_id,
            num_bytes=num_bytes,
            make_answer=make_answer,
            episode=body.episode,
        )
    )


ENDPOINTS: Final[Mapping[str, BatchEndpoint]] = {
    "/v1/chat/completions": BatchEndpoint(partial(parse, ChatCompletionRequest), partial(_generate, "chatcmpl")),
    "/v1/completions": BatchEndpoint(partial(parse, CompletionRequest), partial(_generate, "cmpl")),
    "/v1/responses": BatchEndpoint(_parse_response, _respond),
    "/v1/embeddings": BatchEndpoint(partial(parse, EmbeddingRequest), _embed),
}
