"""Metrics of generated answers: latencies, tokens, traffic, and the row of the interaction log."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial

from graftwork.adapters.feedback.interactions import Completion, NewInteraction
from graftwork.server.engine.request import Delta
from graftwork.server.generation.admission import Admission
from graftwork.server.generation.interaction_log import EndedAnswer, InteractionLog
from graftwork.server.observability.metrics import Metrics
from graftwork.server.observability.traffic import Traffic
from graftwork.server.openai.answers.answer import Answer


@dataclass(slots=True)
class GenerationTimings:
    """Times of one answer, in seconds of ``time.monotonic``.

    Attributes:
        began: When it was admitted.
        scheduled_at: When the engine first computed it.
        first: Its first token.
        last: Its latest token.
        measured: Whether the metrics count it; shadow copies are not counted.
    """

    began: float = field(default_factory=time.monotonic)
    scheduled_at: float | None = None
    first: float | None = None
    last: float | None = None
    measured: bool = True

    def ms(self, moment: float | None) -> float | None:
        """Milliseconds from admission to ``moment``."""
        return None if moment is None else round((moment - self.began) * 1e3, 3)


class Accounting:
    """Counts answers while they are generated and when they have ended, and logs them.

    Args:
        base_id: The base's name, for the log.
        metrics: Latencies and tokens.
        traffic: Requests and tokens per model name.
        log: Rows of answers.
    """

    def __init__(self, base_id: str, metrics: Metrics, traffic: Traffic, log: InteractionLog) -> None:
        self._base_id = base_id
        self._metrics = metrics
        self._traffic = traffic
        self._log = log

    def tick(self, timings: GenerationTimings, delta: Delta) -> None:
        """Record the times of a delta."""
        if timings.scheduled_at is None and delta.queued_seconds is not None:
            timings.scheduled_at = timings.began + delta.queued_seconds
        if not delta.token_ids:
            return
        now = time.monotonic()
        if timings.first is None:
            timings.first = now
        if not timings.measured:
            return
        if timings.last is None:
            self._metrics.first_token(now - timings.began)
        else:
            self._metrics.next_token(now - timings.last)
        timings.last = now

    def settle(self, admission: Admission, answer: Answer, timings: GenerationTimings, error: Exception | None) -> None:
        """Log and count an answer that has ended, completely or not."""
        route = admission.route
        self.log_interaction(admission, answer, timings, error)
        self._traffic.add(route.name, answer.num_completion_tokens)
        self._metrics.tokens(
            adapter=route.label,
            prompt=answer.num_prompt_tokens,
            completion=answer.num_completion_tokens,
        )

    def log_interaction(
        self, admission: Admission, answer: Answer, timings: GenerationTimings, error: Exception | None
    ) -> None:
        """Log an answer that has ended, unless the request says not to."""
        if not admission.store:
            return
        self._log.put(
            EndedAnswer(
                id=admission.id,
                adapter=admission.route.label,
                key_id=admission.key_id,
                num_bytes=admission.num_bytes + 64 * answer.num_completion_tokens,
                outcome=partial(self._outcome, admission, answer, timings, time.monotonic(), error),
            )
        )

    def _outcome(
        self, admission: Admission, answer: Answer, timings: GenerationTimings, ended: float, error: Exception | None
    ) -> NewInteraction:
        """The row of an answer that has ended. Called in the log's thread, when nothing changes any more."""
        body = admission.answered_body
        return NewInteraction(
            id=admission.id,
            base=self._base_id,
            model=body.model,
            status="error" if error is not None else "ok" if answer.done else "cancelled",
            error=None if error is None else getattr(error, "message", type(error).__name__),
            prompt=body.logged_prompt(),
            sampling=body.logged_sampling(),
            completions=tuple(
                Completion(
                    index=choice.index,
                    text=choice.text,
                    finish_reason=choice.finish,
                    tool_calls=tuple(call.as_json() for call in choice.tool_calls),
                )
                for choice in answer.choices
            ),
            prompt_tokens=answer.num_prompt_tokens,
            completion_tokens=answer.num_completion_tokens,
            queue_ms=timings.ms(timings.scheduled_at),
            first_token_ms=timings.ms(timings.first),
            total_ms=timings.ms(ended) or 0.0,
            user=body.user or None,
            metadata=None if body.metadata is None else dict(body.metadata),
            key_id=admission.key_id,
            episode=admission.episode,
        )
