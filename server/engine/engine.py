"""The engine: requests in, tokens out, one step at a time.

``step`` is the whole loop: update grammars and adapters → schedule → run → process the output. One thread calls it.
Adapters are read from the store by the thread of ``lora.fetcher``, grammars compiled by that of ``grammars.compiler``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

from llguidance import LLTokenizer
from torch import Tensor

from graftwork.server.engine.grammars.compiler import CompiledGrammar, GrammarCompiler
from graftwork.server.engine.logits_processors import LogitsProcessor, default_processors
from graftwork.server.engine.lora.adapter_cache import AdapterCache
from graftwork.server.engine.lora.fetcher import AdapterFetcher, FetchAdapter, FetchedAdapter
from graftwork.server.engine.pooler import add_hidden_states, pooled_vector
from graftwork.server.engine.proposer import Proposer
from graftwork.server.engine.request import Delta, FinishReason, Request, TokenLogprob
from graftwork.server.engine.runner import Runner, StepOutput
from graftwork.server.engine.sampler import SampledToken, accept, sample, token_logprobs
from graftwork.server.engine.scheduler import Scheduler, SchedulerConfig
from graftwork.server.engine.sequence import ScheduledTokens, SequenceState

log = logging.getLogger(__name__)

NOT_FINITE = "The model's output was not finite for this prompt."


class Engine:
    """Continuous batching over one base and a bank of adapters. Not thread-safe: one thread calls all methods.

    Args:
        runner: Computes steps.
        limits: How much may run at once.
        fetch: Reads an adapter from the store; called in a thread of its own.
        host_bytes: Host memory for adapters that were fetched and are not on the device.
        on_arrival: Called in their threads after each adapter that was fetched and each grammar that was compiled;
            wakes the loop that calls ``step``.
        grammar_tokenizer: What grammars are compiled with, its vocabulary as wide as the logits; without it requests
            that bring one are refused.
        logits_processors: The processors of a request, called once when it is added.
        proposer: Proposes draft tokens, of which a step can accept several.
    """

    def __init__(
        self,
        runner: Runner,
        limits: SchedulerConfig,
        fetch: FetchAdapter,
        *,
        host_bytes: int,
        on_arrival: Callable[[], None] = lambda: None,
        grammar_tokenizer: LLTokenizer | None = None,
        logits_processors: Callable[[Request], tuple[LogitsProcessor, ...]] = default_processors,
        proposer: Proposer | None = None,
    ) -> None:
        self.runner = runner
        self.adapter_cache = AdapterCache(num_pages=runner.bank.num_pages, host_bytes=host_bytes)
        self.scheduler = Scheduler(limits, self.adapter_cache)
        self.num_steps = 0
        self._fetcher = AdapterFetcher(fetch, runner.grafts.pack, on_arrival)
        self._grammars = None if grammar_tokenizer is None else GrammarCompiler(grammar_tokenizer, on_arrival)
        self._logits_processors = logits_processors
        self._proposer = proposer
        self._refused: list[Delta] = []

    def close(self) -> None:
        """Stop the fetcher's thread. Requests that still run get no further deltas."""
        self._fetcher.close()
        if self._grammars is not None:
            self._grammars.close()

    @property
    def has_work(self) -> bool:
        """Whether a step would compute something or return a delta now."""
        return bool(self.scheduler.running or self._refused) or any(
            not s.awaits_grammar
            and (
                s.request.adapter is None
                or self.adapter_cache.adapters[s.request.adapter].tier in ("store", "host", "device")
            )
            for s in self.scheduler.waiting
        )

    def add(self, request: Request) -> None:
        """Take a request in. The next step answers one that can never run with a delta of ``FinishReason.ERROR``."""
        limits = self.scheduler.config
        if request.id in self.scheduler:
            self._refuse(request.id, f"A request with id {request.id} is already running.")
        elif not request.prompt:
            self._refuse(request.id, "The prompt is empty.")
        elif len(request.prompt) + (request.sampling.max_tokens > 0) > min(limits.max_length, limits.cache_tokens):
            self._refuse(request.id, f"The prompt's {len(request.prompt)} tokens do not fit in the cache.")
        elif request.sampling.grammar is not None and self._grammars is None:
            self._refuse(request.id, "This base's tokenizer cannot be used for structured output.")
        else:
            sequence = self.scheduler.add(request)
            sequence.logits_processors = self._logits_processors(request)
            if request.sampling.grammar is not None and self._grammars is not None:
                if (compiled := self._grammars.get(request.sampling.grammar)) is not None:
                    self._hold_to(sequence, compiled)
                else:
                    sequence.awaits_grammar = True

    def abort(self, request_id: str) -> None:
        """Forget a request, in whatever state it is; it gets no further deltas. Unknown ids are ignored."""
        if (sequence := self.scheduler.get(request_id)) is not None:
            self.scheduler.finish(sequence)

    def step(self) -> list[Delta]:
        """Compute one step.

        An exception of the runner does not leave this method: the requests of the step end with ``FinishReason.ERROR``.

        Returns:
            What the step added, at most one delta per request that it computed.
        """
        deltas, self._refused = self._refused, []
        deltas += self._update_grammars()
        deltas += self._update_adapters()
        scheduled = self.scheduler.schedule()
        try:
            self.runner.apply_moves(self.scheduler.prefix_cache.pop_moves())
            if not scheduled:
                return deltas
            self.num_steps += 1
            output = self.runner.run(scheduled)
            deltas += self._process_output(output)
        except Exception as failure:
            log.exception("step failed; its %d requests are answered with an error", len(scheduled))
            deltas += [
                self._fail(item.sequence, f"The engine failed while computing this request: {type(failure).__name__}.")
                for item in scheduled
            ]
        return deltas

    # -- grammars ------------------------------------------------------------------------------------------------
    def _hold_to(self, sequence: SequenceState, compiled: CompiledGrammar) -> None:
        sequence.awaits_grammar = False
        sequence.grammar = compiled.processor(sequence.num_prompt)
        sequence.logits_processors = (*sequence.logits_processors, sequence.grammar)

    def _update_grammars(self) -> list[Delta]:
        compiled = [] if self._grammars is None else list(self._grammars.completed())
        return [delta for grammar in compiled for delta in self._on_compiled(grammar)]

    def _on_compiled(self, compiled: CompiledGrammar) -> list[Delta]:
        """Whoever waits for a grammar gets it, or hears why not."""
        waiting = [s for s in self.scheduler if s.awaits_grammar and s.request.sampling.grammar == compiled.grammar]
        if compiled.error is not None:
            log.error("a grammar could not be compiled: %s", compiled.error)
            return [self._fail(s, f"The answer's format could not be compiled: {compiled.error}") for s in waiting]
        for sequence in waiting:
            self._hold_to(sequence, compiled)
        return []

    # -- adapters ------------------------------------------------------------------------------------------------
    def _update_adapters(self) -> list[Delta]:
        deltas: list[Delta] = []
        for adapter in self.adapter_cache.pop_fetches():
            self._fetcher.submit(adapter.digest)
        for arrival in self._fetcher.completed():
            deltas += self._on_fetched(arrival)
        moves = self.adapter_cache.swap(
            self.scheduler.waiting_adapters(),
            self.scheduler.starving_adapters(),
            hurried=bool(self.scheduler.running),
        )
        for adapter in moves.evicted:
            self.runner.grafts.reset_lora(adapter.digest)
        for adapter in moves.loaded:
            try:
                self.runner.grafts.set_lora(self.runner.bank.host_adapters[adapter.digest], adapter.pages)
            except Exception as failure:  # mostly out of memory: fail this adapter's requests, not the engine
                log.exception("adapter %s could not be put on the device", adapter.digest)
                self.adapter_cache.unload(adapter)
                deltas += self._fail_adapter(adapter.digest, failure)
        for adapter in moves.dropped:
            del self.runner.bank.host_adapters[adapter.digest]
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
        """Fail all requests that wait for an adapter that could not be loaded; the next request tries again."""
        waiting = [s for s in self.scheduler if s.request.adapter == digest]
        deltas = [self._fail(s, f"The adapter could not be loaded: {error}") for s in waiting]
        self.runner.grafts.reset_lora(digest)
        self.runner.bank.host_adapters.pop(digest, None)
        self.adapter_cache.mark_failed(digest)
        return deltas

    # -- answers -------------------------------------------------------------------------------------------------
    def _process_output(self, output: StepOutput) -> list[Delta]:
        """Sample tokens where sequences go on, and apply them; pool prompts where that is requested."""
        for item, states in output.pooled():
            add_hidden_states(item, states)
        items = output.items()
        sampled = self._sample(output.logits, items)
        deltas = []
        continuing: list[SequenceState] = []
        for item, rows in items:
            sequence = item.sequence
            sequence.num_computed = item.start + item.count - len(item.spec_token_ids)
            delta = Delta(sequence.request.id)
            if item.needs_sample and sequence.num_generated == 0:
                delta.num_cached, delta.queued_seconds = sequence.num_cached or 0, sequence.queued_seconds
            if sequence.request.sampling.prompt_logprobs is not None and item.start < sequence.num_prompt:
                self._score_prompt(item, output.logits[rows.start : rows.stop], delta)
            if item.needs_sample and sequence.request.sampling.pooling is not None:
                self._end_pooled(sequence, delta)
            elif item.needs_sample and not delta.done:
                self._append_tokens(sequence, sampled.get(sequence.request.id, ()), delta)
                if not delta.done:
                    continuing.append(sequence)
            if delta.token_ids or delta.done or delta.prompt_logprobs is not None:
                deltas.append(delta)
        if self._proposer is not None and continuing:
            for sequence, drafts in zip(continuing, self._proposer.propose(continuing), strict=True):
                sequence.spec_token_ids = tuple(drafts)
        return deltas

    def _sample(
        self, logits: Tensor, items: Sequence[tuple[ScheduledTokens, range]]
    ) -> dict[str, Sequence[SampledToken]]:
        """The tokens that follow each request's sequence, by request id: one, or with draft tokens one or several."""
        going_on: list[ScheduledTokens] = []
        sequences: list[SequenceState] = []
        indices: list[int] = []
        drafts: dict[int, tuple[int, ...]] = {}
        for item, rows in items:
            if not (item.needs_sample and rows and item.sequence.request.sampling.max_tokens > 0):
                continue
            going_on.append(item)
            sequences.append(item.sequence)
            if not item.spec_token_ids:
                indices.append(rows[-1])
                continue
            indices += rows[-item.num_samples :]
            for count in range(1, item.num_samples):
                drafts[len(sequences)] = item.spec_token_ids[:count]
                sequences.append(item.sequence)
        if not going_on:
            return {}
        if indices != list(range(len(logits))):
            logits = logits[indices]
        if not drafts:
            tokens = sample(logits, sequences, self.runner.sample_tokens)
            return {item.sequence.request.id: (token,) for item, token in zip(going_on, tokens, strict=True)}
        # Random numbers used for rejected drafts are put back, or a seed would not give the same tokens again.
        states = {item.sequence: item.sequence.rng.getstate() for item in going_on if item.spec_token_ids}
        tokens = sample(logits, sequences, self.runner.sample_tokens, drafts)
        accepted: dict[str, Sequence[SampledToken]] = {}
        first = 0
        for item in going_on:
            chosen = accept(tokens[first : first + item.num_samples], item.spec_token_ids)
            accepted[item.sequence.request.id] = chosen
            first += item.num_samples
            if item.sequence in states and item.sequence.request.sampling.temperature > 0:
                item.sequence.rng.setstate(states[item.sequence])
                for _ in chosen:
                    item.sequence.rng.random()
        return accepted

    def _score_prompt(self, item: ScheduledTokens, logits: Tensor, delta: Delta) -> None:
        """Add the log-probabilities of the prompt tokens that this chunk's logits predict; the first token has none.

        A preempted sequence is computed again from its start: what was sent before is not sent twice. Scores that are
        not finite end the request, as they do while decoding.
        """
        sequence, num_top = item.sequence, item.sequence.request.sampling.prompt_logprobs or 0
        scores: list[TokenLogprob | None] = [None] if sequence.num_scored == 0 else []
        first = max(sequence.num_scored, 1)
        stop = min(item.start + item.count + 1, sequence.num_prompt)
        if first < stop:
            rows = [token - 1 - item.start for token in range(first, stop)]
            scores += token_logprobs(logits, rows, sequence.tokens[first:stop], [num_top] * len(rows))
        sequence.num_scored = max(first, stop)
        if any(score is not None and math.isnan(score.logprob) for score in scores):
            delta.finish_reason, delta.error = FinishReason.ERROR, NOT_FINITE
            self.scheduler.finish(sequence, keep=False)
            return
        delta.prompt_logprobs = scores or None

    def _end_pooled(self, sequence: SequenceState, delta: Delta) -> None:
        """End a sequence whose prompt is computed with the vector that it became."""
        delta.embedding = pooled_vector(sequence)
        delta.finish_reason = FinishReason.LENGTH if delta.embedding is not None else FinishReason.ERROR
        delta.error = None if delta.embedding is not None else NOT_FINITE
        # The mean of a whole prompt finds nothing in the prefix cache, and would drive out what others find there.
        keep = delta.embedding is not None and sequence.request.sampling.pooling != "mean"
        self.scheduler.finish(sequence, keep=keep)

    def _append_tokens(self, sequence: SequenceState, sampled: Sequence[SampledToken], delta: Delta) -> None:
        """Append tokens, or end the sequence: at a stop token, at a limit, or because there is none.

        Args:
            sequence: Computed up to its newest token.
            sampled: What follows, in order. All but the last were computed as drafts: the cache holds them.
            delta: Receives what the step adds to the request.
        """
        sampling, config = sequence.request.sampling, self.scheduler.config
        sequence.spec_token_ids = ()
        if not sampled:
            delta.finish_reason = FinishReason.LENGTH
        for token in sampled:
            if token.token_id is None:
                delta.finish_reason = FinishReason.ERROR
                delta.error = NOT_FINITE
            elif sequence.grammar is not None and (problem := sequence.grammar.error) is not None:
                delta.finish_reason = FinishReason.ERROR
                delta.error = f"The answer could not be held to its format any longer: {problem}"
            elif token.token_id in sampling.stop_token_ids:
                delta.finish_reason = FinishReason.STOP
            else:
                sequence.tokens.append(token.token_id)
                sequence.output_counts[token.token_id] = sequence.output_counts.get(token.token_id, 0) + 1
                delta.token_ids.append(token.token_id)
                if token.logprob is not None:
                    delta.logprobs.append(token.logprob)
                if token is not sampled[-1]:
                    sequence.num_computed += 1
                if sequence.grammar is not None and sequence.grammar.is_complete(sequence.tokens):
                    delta.finish_reason = FinishReason.STOP
                elif sequence.num_generated >= sampling.max_tokens or len(sequence.tokens) >= min(
                    config.max_length, config.cache_tokens
                ):
                    delta.finish_reason = FinishReason.LENGTH
            if delta.done:
                self.scheduler.finish(sequence, keep=delta.finish_reason is not FinishReason.ERROR)
                return
        if delta.done:
            self.scheduler.finish(sequence)

    def _fail(self, sequence: SequenceState, message: str) -> Delta:
        self.scheduler.finish(sequence, keep=False)
        return Delta(sequence.request.id, finish_reason=FinishReason.ERROR, error=message)

    def _refuse(self, request_id: str, message: str) -> None:
        self._refused.append(Delta(request_id, finish_reason=FinishReason.ERROR, error=message))
