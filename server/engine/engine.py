"""The engine: requests in, tokens out, one step at a time.

``step`` is the whole loop: take in fetched adapters → schedule → run → settle. One thread owns it. Adapters are read
from the store by the thread of ``lora.fetcher``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from torch import Tensor

from graftwork.server.engine.lora.adapter_cache import AdapterCache
from graftwork.server.engine.lora.fetcher import AdapterFetcher, FetchAdapter, FetchedAdapter
from graftwork.server.engine.request import Delta, FinishReason, Request, TokenLogprob
from graftwork.server.engine.runner import Runner, StepOutput
from graftwork.server.engine.sampler import SampledToken, sample, token_logprobs
from graftwork.server.engine.scheduler import Scheduler, SchedulerConfig
from graftwork.server.engine.sequence import ScheduledTokens, SequenceState

log = logging.getLogger(__name__)


class Engine:
    """Continuous batching over one base and a bank of adapters.

    ``on_arrival`` wakes the loop that calls ``step`` when an adapter has been fetched while nothing else was to do.
    """

    def __init__(
        self,
        runner: Runner,
        limits: SchedulerConfig,
        fetch: FetchAdapter,
        *,
        host_bytes: int,
        on_arrival: Callable[[], None] = lambda: None,
    ) -> None:
        self.runner = runner
        self.adapter_cache = AdapterCache(num_pages=runner.bank.num_pages, host_bytes=host_bytes)
        self.scheduler = Scheduler(limits, self.adapter_cache)
        self.num_steps = 0
        self._fetcher = AdapterFetcher(fetch, runner.grafts.pack, on_arrival)
        self._refused: list[Delta] = []

    def close(self) -> None:
        self._fetcher.close()

    @property
    def has_work(self) -> bool:
        """A step now would compute something, or there is something to tell."""
        return bool(self.scheduler.running or self._refused) or any(
            s.request.adapter is None
            or self.adapter_cache.adapters[s.request.adapter].tier in ("store", "host", "device")
            for s in self.scheduler.waiting
        )

    def add(self, request: Request) -> None:
        """Take a request in. One that can never run is answered with an error by the next step."""
        limits = self.scheduler.config
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
        deltas += self._update_adapters()
        work = self.scheduler.schedule()
        try:
            self.runner.apply_moves(self.scheduler.prefix_cache.pop_moves())
            if not work:
                return deltas
            self.num_steps += 1
            output = self.runner.run(work)
            deltas += self._process_output(output)
        except Exception as failure:
            log.exception("step failed; its %d requests are answered with an error", len(work))
            deltas += [
                self._fail(item.sequence, f"The engine failed while computing this request: {type(failure).__name__}.")
                for item in work
            ]
        return deltas

    # -- adapters ------------------------------------------------------------------------------------------------
    def _update_adapters(self) -> list[Delta]:
        deltas: list[Delta] = []
        for seat in self.adapter_cache.pop_fetches():
            self._fetcher.submit(seat.digest)
        for arrival in self._fetcher.completed():
            deltas += self._on_fetched(arrival)
        moves = self.adapter_cache.swap(
            self.scheduler.waiting_adapters(),
            self.scheduler.starving_adapters(),
            hurried=bool(self.scheduler.running),
        )
        for seat in moves.evicted:
            self.runner.grafts.reset_lora(seat.digest)
        for seat in moves.loaded:
            try:
                self.runner.grafts.set_lora(self.runner.bank.host_adapters[seat.digest], seat.pages)
            except Exception as failure:  # out of memory, mostly: one adapter's trouble, not the engine's
                log.exception("adapter %s could not be put on the device", seat.digest)
                self.adapter_cache.unload(seat)
                deltas += self._fail_adapter(seat.digest, failure)
        for seat in moves.dropped:
            del self.runner.bank.host_adapters[seat.digest]
        return deltas

    def _on_fetched(self, arrival: FetchedAdapter) -> list[Delta]:
        adapter, error = arrival.adapter, arrival.error
        if adapter is not None and adapter.num_pages > self.adapter_cache.num_pages:
            error = ValueError(
                f"its rank needs {adapter.num_pages} pages of {self.adapter_cache.num_pages}; raise --slots"
            )
        if error is None and adapter is not None:
            self.runner.bank.host_adapters[arrival.digest] = adapter
            self.adapter_cache.mark_fetched(
                arrival.digest, num_pages=adapter.num_pages, num_bytes=adapter.num_bytes, load_ms=arrival.seconds * 1e3
            )
            return []
        log.error("adapter %s could not be loaded: %s", arrival.digest, error)
        return self._fail_adapter(arrival.digest, error)

    def _fail_adapter(self, digest: str, error: Exception | None) -> list[Delta]:
        """Tell everybody who waits for an adapter that it will not come; the next request tries again."""
        waiting = [s for s in self.scheduler if s.request.adapter == digest]
        deltas = [self._fail(s, f"The adapter could not be loaded: {error}") for s in waiting]
        self.runner.grafts.reset_lora(digest)
        self.runner.bank.host_adapters.pop(digest, None)
        self.adapter_cache.mark_failed(digest)
        return deltas

    # -- answers -------------------------------------------------------------------------------------------------
    def _process_output(self, output: StepOutput) -> list[Delta]:
        last = [
            (item, rows[-1])
            for item, rows in zip(output.scheduled, output.rows, strict=True)
            if item.needs_sample and len(rows)
        ]
        choosing = [(item, row) for item, row in last if item.sequence.request.sampling.max_tokens > 0]
        choices: dict[str, SampledToken] = {}
        if choosing:
            logits = output.logits
            if [row for _, row in choosing] != list(range(len(logits))):
                logits = logits[[row for _, row in choosing]]
            chosen = sample(logits, [item.sequence for item, _ in choosing])
            choices = {item.sequence.request.id: choice for (item, _), choice in zip(choosing, chosen, strict=True)}
        deltas = []
        for item, rows in zip(output.scheduled, output.rows, strict=True):
            item.sequence.num_computed = item.start + item.count
            delta = Delta(item.sequence.request.id)
            if item.needs_sample and item.sequence.num_generated == 0:
                delta.num_cached, delta.admitted_at = item.sequence.num_cached or 0, item.sequence.admitted_at
            if item.sequence.request.sampling.prompt_logprobs is not None and item.start < item.sequence.num_prompt:
                self._score_prompt(item, output.logits[rows.start : rows.stop], delta)
            if item.needs_sample:
                self._append_token(item.sequence, choices.get(item.sequence.request.id), delta)
            if delta.token_ids or delta.done or delta.prompt_logprobs is not None:
                deltas.append(delta)
        return deltas

    def _score_prompt(self, item: ScheduledTokens, logits: Tensor, delta: Delta) -> None:
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

    def _append_token(self, sequence: SequenceState, choice: SampledToken | None, delta: Delta) -> None:
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
            limits = self.scheduler.config
            if sequence.num_generated >= sampling.max_tokens or len(sequence.tokens) >= min(
                limits.max_length, limits.cache_tokens
            ):
                delta.finish_reason = FinishReason.LENGTH
        if delta.done:
            self.scheduler.finish(sequence, keep=delta.finish_reason is not FinishReason.ERROR)

    def _fail(self, sequence: SequenceState, message: str) -> Delta:
        self.scheduler.finish(sequence, keep=False)
        return Delta(sequence.request.id, finish_reason=FinishReason.ERROR, error=message)

    def _refuse(self, request_id: str, message: str) -> None:
        self._refused.append(Delta(request_id, finish_reason=FinishReason.ERROR, error=message))
