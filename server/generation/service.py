"""One generation from admission to its end: admit, prepare, start, stream or collect, finish. Called by the routes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from anyio import CapacityLimiter, to_thread

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.errors import GraftworkError, InvalidRequest, Unavailable
from graftwork.adapters.experiments.exposures import SHADOW_OF
from graftwork.adapters.experiments.routing import ModelRouter, Route
from graftwork.adapters.experiments.store import Experiments
from graftwork.adapters.feedback.ids import IdKind, InteractionIds
from graftwork.adapters.feedback.policies import LogPolicies
from graftwork.adapters.prompts.prompts import Prompts
from graftwork.server.generation.accounting import Accounting, GenerationTimings
from graftwork.server.generation.admission import Admission, MakeAnswer
from graftwork.server.generation.artifact_cache import ArtifactCache
from graftwork.server.generation.grammars import Grammars
from graftwork.server.generation.limiter import Limiter, Reservation
from graftwork.server.generation.shadows import ShadowQueue, ShadowRequest
from graftwork.server.observability.metrics import Metrics
from graftwork.server.openai.answers.answer import Answer, AnswerHead
from graftwork.server.openai.answers.chat import ChatAnswer
from graftwork.server.openai.answers.completions import CompletionAnswer
from graftwork.server.openai.requests.chat import ChatCompletionRequest
from graftwork.server.openai.requests.completions import CompletionRequest
from graftwork.server.openai.requests.generation import GenerationRequest
from graftwork.server.openai.vocabulary import Vocabulary
from graftwork.server.transport.engine import EngineInput, EngineProtocol, EngineStream, context_length
from graftwork.version import __version__

#: Of the grammars of one request's choices, each of which takes its own along to the engine.
MAX_GRAMMAR_BYTES = 4 << 20
#: Prompts that are tokenized at once; the others wait.
TOKENIZING_THREADS = 4


@dataclass(slots=True)
class ActiveGeneration:
    """A request that the engine computes: what was admitted, and the answer as far as it has come."""

    admission: Admission
    answer: Answer
    stream: EngineStream
    timings: GenerationTimings = field(default_factory=GenerationTimings)
    reservation: Reservation | None = None
    finished: bool = False


class GenerationService:
    """Answers the requests of all generation routes.

    Args:
        base: The base.
        engine: Computes tokens.
        prompts: Encodes prompts and decodes tokens.
        router: Resolves ``model`` to a version or an arm.
        experiments: Running experiments, for shadow arms.
        ids: Mints the ids of answers.
        policies: Of which answers users are asked for feedback.
        accounting: Counts and logs answers.
        metrics: Counts shadow copies.
        limiter: Keeps the limits of keys.
        artifacts: Fetches adapters that are not in the home; ``None``: all are.
        shares_prefixes: Whether keys share the prefix cache, and so can tell by the time what others have asked.
        max_busy_for_shadows: Shadow copies are computed while at most this many answers are under way.
    """

    def __init__(
        self,
        *,
        base: BaseInfo,
        engine: EngineProtocol,
        prompts: Prompts,
        router: ModelRouter,
        experiments: Experiments,
        ids: InteractionIds,
        policies: LogPolicies,
        accounting: Accounting,
        metrics: Metrics,
        limiter: Limiter,
        artifacts: ArtifactCache | None = None,
        shares_prefixes: bool = False,
        max_busy_for_shadows: int = 8,
    ) -> None:
        self.base = base
        self.engine = engine
        self.prompts = prompts
        self.limiter = limiter
        self.vocabulary = Vocabulary(prompts)
        self.shadows: ShadowQueue[Admission] = ShadowQueue(
            self._answer_shadow, metrics, num_busy=engine.num_open, max_busy=max_busy_for_shadows
        )
        # Threads of their own: neither long prompts nor a database that is locked can keep the other's.
        self._tokenizing = CapacityLimiter(TOKENIZING_THREADS)
        self._router = router
        self._experiments = experiments
        self._ids = ids
        self._policies = policies
        self._accounting = accounting
        self._artifacts = artifacts
        self._grammars = Grammars()
        self._shares_prefixes = shares_prefixes

    # -- before the engine -----------------------------------------------------------------------------------------
    def admit(
        self,
        kind: IdKind,
        body: GenerationRequest,
        *,
        session: str | None,
        key_id: str,
        num_bytes: int,
        make_answer: MakeAnswer = ChatAnswer,
        episode: str | None = None,
    ) -> Admission:
        """Route a request and mint the answer's id. Nothing is queued yet.

        Args:
            kind: Of the id, which tells the route.
            body: The parsed body.
            session: The session header: a unit of experiments where the body names no user.
            key_id: The caller's key.
            num_bytes: Size of the request's body.
            make_answer: Makes the answer to a chat, in the shape of the route.
            episode: The name of the episode that the request is part of.

        Raises:
            GraftworkError: The model is unknown, or was made for another base.
        """
        unit = self._ids.unit(user=body.user or None, session=session)
        judged_as = self._ids.episode(episode, key_id=key_id) if episode else None
        route = self._router.resolve(body.model, unit, chat=kind != "cmpl", episode=judged_as)
        created, asked = int(time.time()), self._asks_feedback(route, body, key_id)
        return Admission(
            kind=kind,
            id=route.mint_id(self._ids, kind, unit=unit, at=created, choices=_num_choices(body), asked=asked),
            created=created,
            unit=unit,
            route=route,
            body=body,
            key_id=key_id,
            store=body.store is not False,
            num_bytes=num_bytes,
            asked=asked,
            make_answer=make_answer,
            episode=judged_as,
        )

    def _asks_feedback(self, route: Route, body: GenerationRequest, key_id: str) -> bool:
        """Draw whether a user is to be asked for feedback. Only answers that are logged are marked."""
        # In an experiment every arm asks the same share, that of the adapter, also where the bare base answers.
        subject = route.label if route.draw is None else body.model
        return (
            body.store is not False
            and self._policies.draws_feedback(adapter=subject, key_id=key_id)
            and self._policies.is_logged(adapter=route.label, key_id=key_id)
        )

    async def prepare(self, admission: Admission) -> tuple[Answer, list[EngineInput]]:
        """Have the adapter at hand, tokenize the prompts, and make the grammar of a structured output.

        Returns:
            The answer, still empty, and the engine's input for each of its choices.

        Raises:
            InvalidRequest: A prompt does not fit into the context, the chat template refuses it, or a grammar cannot be
                followed.
            Unavailable: The adapter is in a bucket that does not answer.
        """
        body, head = admission.answered_body, self._head(admission)
        body.check_token_ids(self.base.vocab_size)
        if self._artifacts is not None and admission.route.digest is not None:
            await self._artifacts.ensure(admission.route.digest)
        grammar = await self._grammar(body, admission.key_id)
        if isinstance(body, ChatCompletionRequest):
            options = body.template_options()
            encode = partial(self.prompts.chat, body.chat_messages(), **options, max_length=self._max_length)
            prompt = await to_thread.run_sync(encode, limiter=self._tokenizing)
            tool_calls = self.prompts.tool_call_format if body.shown_tools() else None
            answer = admission.make_answer(body, head, self.vocabulary, prompt, tool_calls)
            return answer, self._inputs(body, [prompt], grammar)
        assert isinstance(body, CompletionRequest)
        encode = partial(self.prompts.encode, max_length=self._max_length)
        prompts = await to_thread.run_sync(body.prompts, encode, self.base.vocab_size, limiter=self._tokenizing)
        return CompletionAnswer(body, head, self.vocabulary, prompts), self._inputs(body, prompts, grammar)

    async def _grammar(self, body: GenerationRequest, key_id: str) -> str | None:
        """What the answer is held to, tried out."""
        source = body.grammar_source(self.prompts.tool_call_format)
        return None if source is None else await self._grammars.make(source, key_id)

    def _inputs(
        self, body: GenerationRequest, prompts: Sequence[Sequence[int]], grammar: str | None
    ) -> list[EngineInput]:
        if (total := len(grammar or "") * len(prompts) * body.choices) > MAX_GRAMMAR_BYTES:
            raise InvalidRequest(
                f"the answer's format, once for each of {len(prompts) * body.choices} answers, makes {total} bytes: at "
                f"most {MAX_GRAMMAR_BYTES} are taken in one request; send several",
                param="n",
            )
        inputs: list[EngineInput] = []
        for prompt in prompts:
            for choice in range(body.choices):
                params = body.sampling_params(
                    len(prompt), self._max_length, self.prompts.eos_token_ids, choice=choice, grammar=grammar
                )
                inputs.append((tuple(prompt), params))
        return inputs

    @property
    def _max_length(self) -> int:
        """Tokens of the context, prompt and answer together."""
        return context_length(self.engine, self.base)

    def _head(self, admission: Admission) -> AnswerHead:
        digest = self.base.digest.removeprefix("sha256:")
        return AnswerHead(
            id=admission.id,
            created=admission.created,
            model=admission.body.model,
            fingerprint=f"gw-{__version__}-{self.engine.base_card.get('quantize', 'none')}-{digest[:8]}",
            graftwork=admission.labels(),
        )

    # -- while the engine answers ----------------------------------------------------------------------------------
    def start(
        self,
        admission: Admission,
        answer: Answer,
        inputs: Sequence[EngineInput],
        *,
        background: bool = False,
        charged: bool = True,
    ) -> ActiveGeneration:
        """Charge a prepared request to its key, and send it to the engine.

        Args:
            admission: As ``admit`` returned it.
            answer: As ``prepare`` returned it.
            inputs: As ``prepare`` returned them.
            background: Whether no user waits for it: it does not count as waiting, nor in the metrics of latency.
            charged: Whether it counts for the key's limits.

        Raises:
            LimitExceeded: A limit of the key or the adapter is reached.
            Overloaded: The queue is full, and the caller's key has its share of it.
            Unavailable: There is no engine at the moment.
        """
        salts = ("" if self._shares_prefixes else admission.key_id, admission.body.cache_salt or "")
        tokens = answer.num_prompt_tokens + sum(params.max_tokens for _, params in inputs)
        charge = partial(
            self.limiter.begin,
            admission.key_id,
            tokens,
            adapter=admission.route.adapter,
            background=background,
        )
        reservation = charge() if charged else None
        try:
            stream = self.engine.open(
                inputs,
                adapter=admission.route.digest,
                cache_salt="/".join(salts),
                background=background,
                tenant=admission.key_id,
            )
        except GraftworkError:
            if reservation is not None:
                reservation.withdraw()
            raise
        return ActiveGeneration(admission, answer, stream, GenerationTimings(measured=not background), reservation)

    async def answer(self, admission: Admission) -> bytes:
        """The body of an answer that no user waits for.

        If it is cancelled or the engine was lost, nothing is counted or logged: it is asked again.

        Raises:
            Unavailable: There is no engine at the moment, or it was lost.
            GraftworkError: The request cannot be answered, or the engine failed at it.
        """
        active = self.start(admission, *await self.prepare(admission), background=True)
        try:
            await self._take_all(active)
        except (asyncio.CancelledError, Unavailable):
            self.engine.cancel(active.stream)
            if active.reservation is not None:
                active.reservation.withdraw()
            raise
        except Exception as failure:
            self._finish(active, failure)
            raise
        self._finish(active, None)
        return active.answer.body()

    async def collect(self, active: ActiveGeneration) -> None:
        """Wait for the whole answer. If cancelled, what has come by then is counted and logged.

        Raises:
            Unavailable: The engine was lost.
            GraftworkError: The engine failed at this request.
        """
        error: Exception | None = None
        try:
            await self._take_all(active)
        except Exception as failure:
            error = failure
            raise
        finally:
            self._finish(active, error)

    async def events(self, active: ActiveGeneration) -> AsyncIterator[bytes]:
        """Yield server-sent events while the engine computes; the engine stops when the client leaves.

        An error ends the stream with an event that carries it.
        """
        answer = active.answer
        error: Exception | None = None
        try:
            if opening := answer.opening():
                yield opening
            async for choice, delta in active.stream:
                piece = answer.push(choice, delta)
                self._accounting.tick(active.timings, delta)
                if events := answer.frames(choice, piece):
                    yield events
                if piece.finish is not None:
                    self.engine.cancel(active.stream, choice)
                    if answer.done:
                        break
            yield answer.closing()
        except GraftworkError as failure:
            error = failure
            yield answer.failure(failure)
        except Exception as failure:
            error = failure
            raise
        finally:
            self._finish(active, error)

    async def _take_all(self, active: ActiveGeneration) -> None:
        async for choice, delta in active.stream:
            piece = active.answer.push(choice, delta)
            self._accounting.tick(active.timings, delta)
            if piece.finish is not None:
                self.engine.cancel(active.stream, choice)
                if active.answer.done:
                    return

    def leave(self, active: ActiveGeneration) -> None:
        """End an answer that nobody takes any more, if it has not ended: clients may leave before its first event."""
        self._finish(active, None)

    def _finish(self, active: ActiveGeneration, error: Exception | None) -> None:
        """Count an answer that has ended, completely or not, log it, and offer it to shadow arms."""
        if active.finished:
            return
        active.finished = True
        self.engine.cancel(active.stream)
        admission, answer = active.admission, active.answer
        if active.reservation is not None:
            active.reservation.settle(answer.num_prompt_tokens + answer.num_completion_tokens)
        self._accounting.settle(admission, answer, active.timings, error)
        draw = admission.route.draw
        if draw is not None and admission.store and error is None and answer.done:
            experiment = self._experiments.running_on(admission.body.model)
            if experiment is not None and experiment.name == draw.experiment:
                self.shadows.offer(experiment, admission.id, admission)

    # -- shadow arms -----------------------------------------------------------------------------------------------
    async def _answer_shadow(self, copy: ShadowRequest[Admission]) -> None:
        """Answer a request again with a shadow arm; the answer is only logged."""
        original, created = copy.of, int(time.time())
        route = self._router.route_to_arm(copy.draw, original.body.model)
        changes: dict[str, Any] = {
            "n": None,
            "stream": None,
            "metadata": {**(original.body.metadata or {}), SHADOW_OF: original.id},
        }
        if isinstance(original.body, CompletionRequest):
            changes["prompt"] = original.body.prompt[:1]
        body = original.body.model_copy(update=changes)
        id = route.mint_id(self._ids, original.kind, unit=original.unit, at=created, choices=_num_choices(body))
        # A copy is no part of the episode, whose judgement is about what the user saw.
        admission = replace(original, id=id, created=created, route=route, body=body, episode=None, asked=False)
        active = self.start(admission, *await self.prepare(admission), background=True, charged=False)
        error: Exception | None = None
        try:
            await self._take_all(active)
        except GraftworkError as failure:
            error = failure
            raise
        finally:
            self.engine.cancel(active.stream)
            self._accounting.log_interaction(admission, active.answer, active.timings, error)


def _num_choices(body: GenerationRequest) -> int | None:
    """How many choices the answer has; ``None`` if an id has no room for so many."""
    number = body.choices * (len(body.prompt) if isinstance(body, CompletionRequest) else 1)
    return number if number < 256 else None
