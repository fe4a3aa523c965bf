"""The engine: requests in, tokens out, one step at a time.

``step`` is the whole loop: take in fetched adapters → schedule → run → settle. One thread owns it. Adapters are read
from the store by the thread of ``lora.fetcher``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from torch import Tensor

from graftwork.server.engine.lora.adapter_cache import Residency
from graftwork.server.engine.lora.fetcher import Fetch, Fetched, Fetcher
from graftwork.server.engine.request import Delta, FinishReason, Request, TokenLogprob
from graftwork.server.engine.runner import Output, Runner
from graftwork.server.engine.sampler import Choice, sample, token_logprobs
from graftwork.server.engine.scheduler import Limits, Scheduler
from graftwork.server.engine.sequence import Sequence, Work

log = logging.getLogger(__name__)


class Engine:
    """Continuous batching over one base and a bank of adapters.

    ``on_arrival`` wakes the loop that calls ``step`` when an adapter has been fetched while nothing else was to do.
    """

    def __init__(
        self,
        runner: Runner,
        limits: Limits,
        fetch: Fetch,
        *,
        host_bytes: int,
        on_arrival: Callable[[], None] = lambda: None,
    ) -> None:
        self.runner = runner
        self.residency = Residency(num_pages=runner.bank.num_pages, host_bytes=host_bytes)
        self.scheduler = Scheduler(limits, self.residency)
        self.num_steps = 0
        self._fetcher = Fetcher(fetch, runner.grafts.pack, on_arrival)
        self._refused: list[Delta] = []

    def close(self) -> None:
        self._fetcher.close()

    @property
    def runnable(self) -> bool:
        """A step now would compute something, or there is something to tell."""
        return bool(self.scheduler.running or self._refused) or any(
            s.request.adapter is None or self.residency.seats[s.request.adapter].tier in ("store", "host", "device")
            for s in self.scheduler.waiting
        )

    def add(self, request: Request) -> None:
        """Take a request in. One that can never run is answered with an error by the next step."""
        limits = self.scheduler.limits
        if request.id in self.scheduler:
            self._refuse(request.id, f"A request with id {request.id} is already running.")
        elif not request.prompt:
            self._refuse(request.id, "The prompt is empty.")
        elif len(request.prompt) >= min(limits.max_length, limits.cache_tokens):
            self._refuse(request.id, f"The prompt's {len(request.prompt)} tokens do not fit in the cache.")
        else:
            self.scheduler.add(request)

    def abort(self, request_id: str) -> None:
        """Forget a request, in whatever state it is. Unknown ids are fine: it may just have finished."""
        if (sequence := self.scheduler.get(request_id)) is not None:
            self.scheduler.finish(sequence)

    def step(self) -> list[Delta]:
        """Compute one step and say what it added to whom."""
        deltas, self._refused = self._refused, []
        deltas += self._take_in_adapters()
        work = self.scheduler.schedule()
        try:
            self.runner.arrange(self.scheduler.prefix_cache.take_moves())
            if not work:
                return deltas
            self.num_steps += 1
            output = self.runner.run(work)
            deltas += self._settle(output)
        except Exception as failure:
            log.exception("step failed; its %d requests are answered with an error", len(work))
            deltas += [
                self._fail(item.sequence, f"The engine failed while computing this request: {type(failure).__name__}.")
                for item in work
            ]
        return deltas

    # -- adapters ------------------------------------------------------------------------------------------------
    def _take_in_adapters(self) -> list[Delta]:
        deltas: list[Delta] = []
        for seat in self.residency.to_fetch():
            self._fetcher.want(seat.digest)
        for arrival in self._fetcher.arrivals():
            deltas += self._arrived(arrival)
        moves = self.residency.move(
            self.scheduler.wanted_adapters(),
            self.scheduler.starving_adapters(),
            hurried=bool(self.scheduler.running),
        )
        for seat in moves.evicted:
            self.runner.grafts.leave(seat.digest)
        for seat in moves.seated:
            try:
                self.runner.grafts.seat(self.runner.bank.host[seat.digest], seat.pages)
            except Exception as failure:  # out of memory, mostly: one adapter's trouble, not the engine's
                log.exception("adapter %s could not be put on the device", seat.digest)
                self.residency.unseat(seat)
                deltas += self._give_up(seat.digest, failure)
        for seat in moves.forgotten:
            del self.runner.bank.host[seat.digest]
        return deltas

    def _arrived(self, arrival: Fetched) -> list[Delta]:
        adapter, error = arrival.adapter, arrival.error
        if adapter is not None and adapter.num_pages > self.residency.num_pages:
            error = ValueError(f"its rank needs {adapter.num_pages} pages of {self.residency.num_pages}; raise --slots")
        if error is None and adapter is not None:
            self.runner.bank.host[arrival.digest] = adapter
            self.residency.arrived(
                arrival.digest, num_pages=adapter.num_pages, num_bytes=adapter.num_bytes, load_ms=arrival.seconds * 1e3
            )
            return []
        log.error("adapter %s could not be loaded: %s", arrival.digest, error)
        return self._give_up(arrival.digest, error)

    def _give_up(self, digest: str, error: Exception | None) -> list[Delta]:
        """Tell everybody who waits for an adapter that it will not come; the next request tries again."""
        waiting = [s for s in self.scheduler if s.request.adapter == digest]
        deltas = [self._fail(s, f"The adapter could not be loaded: {error}") for s in waiting]
        self.runner.grafts.leave(digest)
        self.runner.bank.host.pop(digest, None)
        self.residency.failed(digest)
        return deltas

    # -- answers -------------------------------------------------------------------------------------------------
    def _settle(self, output: Output) -> list[Delta]:
        last = [
            (item, rows[-1])
            for item, rows in zip(output.work, output.rows, strict=True)
            if item.completes and len(rows)
        ]
        choosing = [(item, row) for item, row in last if item.sequence.request.sampling.max_tokens > 0]
        choices: dict[str, Choice] = {}
        if choosing:
            logits = output.logits
            if [row for _, row in choosing] != list(range(len(logits))):
                logits = logits[[row for _, row in choosing]]
            chosen = sample(logits, [item.sequence for item, _ in choosing])
            choices = {item.sequence.request.id: choice for (item, _), choice in zip(choosing, chosen, strict=True)}
        deltas = []
        for item, rows in zip(output.work, output.rows, strict=True):
            item.sequence.num_computed = item.start + item.count
            delta = Delta(item.sequence.request.id)
            if item.completes and item.sequence.num_generated == 0:
                delta.num_cached, delta.admitted_at = item.sequence.num_cached or 0, item.sequence.admitted_at
            if item.sequence.request.sampling.prompt_logprobs is not None and item.start < item.sequence.num_prompt:
                self._score_prompt(item, output.logits[rows.start : rows.stop], delta)
            if item.completes:
                self._extend(item.sequence, choices.get(item.sequence.request.id), delta)
            if delta.token_ids or delta.done or delta.prompt_logprobs is not None:
                deltas.append(delta)
        return deltas

    def _score_prompt(self, item: Work, logits: Tensor, delta: Delta) -> None:
        """Log-probabilities of the prompt's own tokens that this chunk's logits predict; its first token has none.

        A preempted sequence is computed again from its start: what was told before is not told twice.
        """
        sequence, num_top = item.sequence, item.sequence.request.sampling.prompt_logprobs or 0
        scores: list[TokenLogprob | None] = [None] if sequence.num_scored == 0 else []
        first = max(sequence.num_scored, 1)
        stop = min(item.start + item.count + 1, sequence.num_prompt)
        if first < stop:
            rows = [token - 1 - item.start for token in range(first, stop)]
            scores += token_logprobs(logits, rows, sequence.tokens[first:stop], [num_top] * len(rows))
        sequence.num_scored = max(first, stop)
        delta.prompt_logprobs = scores or None

    def _extend(self, sequence: Sequence, choice: Choice | None, delta: Delta) -> None:
        """Append the chosen token, or end the sequence."""
        sampling = sequence.request.sampling
        if choice is None:
            delta.finish_reason = FinishReason.LENGTH
        elif choice.token_id is None:
            delta.finish_reason, delta.error = FinishReason.ERROR, "The model's output was not finite for this prompt."
        elif choice.token_id in sampling.stop_token_ids:
            delta.finish_reason = FinishReason.STOP
        else:
            sequence.tokens.append(choice.token_id)
            sequence.output_counts[choice.token_id] = sequence.output_counts.get(choice.token_id, 0) + 1
            delta.token_ids.append(choice.token_id)
            if choice.logprob is not None:
                delta.logprobs.append(choice.logprob)
            limits = self.scheduler.limits
            if sequence.num_generated >= sampling.max_tokens or len(sequence.tokens) >= min(
                limits.max_length, limits.cache_tokens
            ):
                delta.finish_reason = FinishReason.LENGTH
        if delta.done:
            self.scheduler.finish(sequence, keep=delta.finish_reason is not FinishReason.ERROR)

    def _fail(self, sequence: Sequence, message: str) -> Delta:
        self.scheduler.finish(sequence, keep=False)
        return Delta(sequence.request.id, finish_reason=FinishReason.ERROR, error=message)

    def _refuse(self, request_id: str, message: str) -> None:
        self._refused.append(Delta(request_id, finish_reason=FinishReason.ERROR, error=message))
