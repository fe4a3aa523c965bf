"""Embeddings from a body to an answer. They are no answers of a model that could be rated: nothing is logged, and no
experiment is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from graftwork.adapters.errors import GraftworkError, InvalidRequest, Overloaded, Unavailable
from graftwork.adapters.experiments.routing import ModelRouter, Route
from graftwork.server.engine.request import FinishReason, Pooling, SamplingParams
from graftwork.server.generation.artifact_cache import ArtifactCache
from graftwork.server.generation.limiter import Limiter, Reservation
from graftwork.server.generation.tokenization import Tokenization
from graftwork.server.observability.metrics import Metrics
from graftwork.server.observability.traffic import Traffic
from graftwork.server.openai.answers.embeddings import EmbeddingAnswer
from graftwork.server.openai.requests.embeddings import EmbeddingRequest
from graftwork.server.openai.requests.generation import check_token_ids
from graftwork.server.openai.requests.prompts import Prompt
from graftwork.server.transport.engine import EngineProtocol, EngineStream

#: Tokens of all inputs of a request. OpenAI's.
MAX_TOKENS = 300_000

#: Inputs of one request that the engine has at a time: the queue's other places are for other requests.
MAX_OPEN_INPUTS = 32

#: Pauses between two tries to place the next inputs of a request in a queue that is full.
RETRY_SECONDS = 0.05


@dataclass(slots=True)
class ActiveEmbeddings:
    """A request whose first inputs the engine has.

    Attributes:
        route: The version that answers.
        answer: The answer as far as it has come.
        pooling: How hidden states become vectors.
        stream: What the engine says to the inputs from ``first`` on.
        first: The first input of ``stream``.
        reservation: What the key is charged with.
    """

    route: Route
    answer: EmbeddingAnswer
    pooling: Pooling
    stream: EngineStream
    reservation: Reservation
    first: int = 0


class EmbeddingService:
    """Answers embedding requests.

    Args:
        engine: Computes the vectors.
        tokenization: Tokenizes inputs.
        router: Resolves ``model`` to a version.
        metrics: Counts tokens.
        traffic: Counts requests.
        limiter: Keeps the limits of keys.
        shares_prefixes: As in ``GenerationService``.
        artifacts: Fetches adapters that are not in the home; ``None``: all are.
    """

    def __init__(
        self,
        *,
        engine: EngineProtocol,
        tokenization: Tokenization,
        router: ModelRouter,
        metrics: Metrics,
        traffic: Traffic,
        limiter: Limiter,
        artifacts: ArtifactCache | None = None,
        shares_prefixes: bool = False,
    ) -> None:
        self._engine = engine
        self._tokenization = tokenization
        self._router = router
        self._metrics = metrics
        self._traffic = traffic
        self._artifacts = artifacts
        self.limiter = limiter
        self._shares_prefixes = shares_prefixes

    async def start(self, body: EmbeddingRequest, *, key_id: str, background: bool = False) -> ActiveEmbeddings:
        """Resolve the model, tokenize the inputs, and send the first of them to the engine.

        Args:
            body: The parsed body.
            key_id: The caller's key.
            background: Whether no user waits for it.

        Raises:
            InvalidRequest: An input is too long, has no tokens or unknown ones, or another width is wanted.
            NotFound: Nothing has the model's name.
            Conflict: The version was made for another base.
            LimitExceeded: A limit of the key or the adapter is reached.
            Overloaded: The queue is full, and the caller's key has its share of it.
            Unavailable: There is no engine at the moment, or the adapter is in a bucket that does not answer.
        """
        route = self._router.resolve_control(body.model)
        body.check_dimensions(self._tokenization.base.hidden_size)
        if not background:
            self.limiter.check(key_id)
        prompts = await self._tokenization.run(partial(self._tokenize, body.input))
        pooling: Pooling = body.pooling or "mean"
        answer = EmbeddingAnswer(
            model=body.model,
            graftwork={**route.labels(), "pooling": pooling},
            prompts=prompts,
            as_base64=body.encoding_format == "base64",
        )
        await self._ensure(route)
        reservation = self.limiter.begin(key_id, sum(map(len, prompts)), adapter=route.adapter, background=background)
        try:
            stream = self._open(route, prompts, pooling, key_id=key_id, background=background)
        except GraftworkError:
            reservation.withdraw()
            raise
        return ActiveEmbeddings(route, answer, pooling, stream, reservation)

    async def collect(self, active: ActiveEmbeddings) -> EmbeddingAnswer:
        """Wait for all vectors. If cancelled, the engine stops, and what has come by then is counted.

        In the background nothing is counted when it is cancelled or the engine was lost: it is asked again.

        Raises:
            Unavailable: The engine was lost.
            GraftworkError: The engine failed at an input.
        """
        prompts = active.answer.prompts
        asked_again = False
        try:
            await self._take(active)
            while (first := active.first + len(active.stream.ids)) < len(prompts):
                before = active.stream
                active.stream = await self._open_in_turn(
                    active.route, prompts[first:], active.pooling, key_id=before.tenant, background=before.background
                )
                active.first = first
                await self._take(active)
        except (asyncio.CancelledError, Unavailable):
            asked_again = active.stream.background
            raise
        finally:
            self._engine.cancel(active.stream)
            if asked_again:
                active.reservation.withdraw()
            else:
                self._count(active)
        return active.answer

    def _count(self, active: ActiveEmbeddings) -> None:
        """Charge and count a request that has ended, completely or not."""
        num_tokens, route = active.answer.num_tokens, active.route
        active.reservation.settle(num_tokens)
        self._traffic.add(route.name, 0)
        self._metrics.tokens(adapter=route.label, prompt=num_tokens, completion=0)

    def _tokenize(self, inputs: Sequence[Prompt]) -> list[Sequence[int]]:
        prompts: list[Sequence[int]] = []
        total = 0
        for index, text in enumerate(inputs):
            prompts.append(self._token_ids(f"input[{index}]" if len(inputs) > 1 else "input", text))
            if (total := total + len(prompts[-1])) > MAX_TOKENS:
                raise InvalidRequest(
                    f"the inputs up to input[{index}] have {total} tokens, and one request takes {MAX_TOKENS} at most: "
                    "send several",
                    param="input",
                )
        return prompts

    def _token_ids(self, place: str, text: Prompt) -> Sequence[int]:
        """The token ids of the input at ``place``."""
        tokenization, most = self._tokenization, self._tokenization.max_length
        if isinstance(text, str):
            try:
                ids: Sequence[int] = tokenization.prompts.encode(text, max_length=most)
            except InvalidRequest as refused:
                raise InvalidRequest(f"{place}: {refused.message}", param=place, code=refused.code) from None
        else:
            ids = text
            check_token_ids(place, ids, tokenization.base.vocab_size)
        if not ids:
            raise InvalidRequest(f"{place} has no tokens: send some text", param=place)
        if len(ids) > most:
            raise InvalidRequest(
                f"{place} has {len(ids)} tokens, but this model's context is {most} tokens: shorten it or split it",
                param=place,
                code="context_length_exceeded",
            )
        return ids

    # -- the engine ------------------------------------------------------------------------------------------------
    def _open(
        self, route: Route, prompts: Sequence[Sequence[int]], pooling: Pooling, *, key_id: str, background: bool
    ) -> EngineStream:
        """Send the first of ``prompts`` to the engine."""
        params = SamplingParams(max_tokens=0, pooling=pooling)
        count = min(MAX_OPEN_INPUTS, self._engine.max_choices)
        inputs = [(ids, params) for ids in prompts[:count]]
        salt = "" if self._shares_prefixes else key_id
        return self._engine.open(inputs, adapter=route.digest, cache_salt=salt, background=background, tenant=key_id)

    async def _ensure(self, route: Route) -> None:
        if self._artifacts is not None and route.digest is not None:
            await self._artifacts.ensure(route.digest)

    async def _open_in_turn(
        self, route: Route, prompts: Sequence[Sequence[int]], pooling: Pooling, *, key_id: str, background: bool
    ) -> EngineStream:
        """Send the first of ``prompts`` to the engine once the queue has room: the request was accepted already."""
        while True:
            await self._ensure(route)
            try:
                return self._open(route, prompts, pooling, key_id=key_id, background=background)
            except Overloaded:
                await asyncio.sleep(RETRY_SECONDS)

    async def _take(self, active: ActiveEmbeddings) -> None:
        """Take all vectors of the stream."""
        async for choice, delta in active.stream:
            if delta.finish_reason is FinishReason.ERROR:
                raise GraftworkError(delta.error or "the engine could not embed this input: try again")
            if delta.embedding is not None:
                active.answer.put(active.first + choice, delta.embedding)
