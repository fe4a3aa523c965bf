"""The scheduler: admission, chunked prefill, preemption. Plain Python, no torch.

A sequence waits until its grammar is compiled, its adapter is on the device, a slot of the key-value cache is free and
the token budget has room. Then its prompt is computed in chunks beside the sequences that already decode, starting
behind the prefix that ``PrefixCache`` has, and after that it decodes one token a step. When the cache runs out of
tokens, the youngest running sequence of the tenant that holds most is preempted: it gives its slot back and is computed
again later. Its generated tokens are kept, so the client only sees a delay. The oldest sequence is never preempted for
this, and one that has just begun only if all have.

``FairQueue`` says which tenant's turn it is, and which of its adapters'. When there is no place for whose turn it is,
somebody who has more than a fair share of the places gives one back, by preemption, too. Of one adapter's sequences,
the step's token budget for prompts goes to those with the least left to compute, so that a short prompt does not wait
for a long one. A quarter of it, and the first free slot, always belongs to the oldest, so that none starves. A sequence
whose prefix is being computed by another one waits for it and copies it. A sequence whose adapter
is not on the device yet is overtaken at most ``max_overtakes`` times; then an adapter is drained to make room for it.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from graftwork.server.engine.fair_queue import FairQueue, Flow, TokenCounter, owes
from graftwork.server.engine.kv.prefix_cache import Prefix, PrefixCache, PrefixHit
from graftwork.server.engine.lora.adapter_cache import AdapterCache, CachedAdapter, Tier
from graftwork.server.engine.request import Request
from graftwork.server.engine.sequence import ScheduledTokens, SequenceState

#: One part in this many of a step's token budget is the oldest prompt's.
OLDEST_SHARE = 4

#: The most prompts that are computed side by side; more only if the step's budget suffices to finish them. A prompt
#: that is begun and waits for its turn holds a slot that a shorter one could use.
MAX_CONCURRENT_PREFILLS = 4

#: A sequence waits for a prefix that another one is computing if that saves this many tokens, and one part in
#: ``WAIT_SHARE`` of what it has to compute.
SHORTEST_WAIT = 32
WAIT_SHARE = 8

#: A sequence that was admitted generates this many tokens before it is preempted for the sake of a fair share: what has
#: to be computed again, where the prefix cache has lost it, must have been worth it.
QUANTUM = 32

#: Tenants that have as many places as one another, or one more, change places after a lead of so many tokens.
SLICE = 256

#: Copying this many tokens within the cache is counted like computing one.
COPIES_PER_TOKEN = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class SchedulerConfig:
    """Limits of the scheduler.

    Attributes:
        max_sequences: The most sequences that run at once.
        max_length: The most tokens of a sequence.
        cache_tokens: The most tokens in the key-value cache, running and retained.
        num_slots: Slots of the cache; ``None``: ``max_sequences``.
        step_tokens: The most prompt tokens of a step.
        max_overtakes: How many younger sequences may be admitted before one that waits for its adapter.
        prefix_cache: Whether keys and values of ended sequences are used again.
    """

    max_sequences: int
    max_length: int
    cache_tokens: int
    num_slots: int | None = None
    step_tokens: int = 256
    max_overtakes: int = 16
    prefix_cache: bool = True


class Scheduler:
    """Waiting and running sequences, and what each step computes.

    ``schedule`` chooses the tokens of a step; ``finish`` gives back what a sequence holds.

    Args:
        limits: How much may run at once.
        adapter_cache: Which adapters are on the device.

    Attributes:
        waiting: Sequences without a slot, by tenant and adapter.
        running: Sequences with a slot.
        num_preemptions: Since the start.
        num_prompt_tokens: Prompt tokens of admitted requests, since the start.
        num_cached_tokens: Those of them that the prefix cache had.
    """

    def __init__(self, limits: SchedulerConfig, adapter_cache: AdapterCache) -> None:
        self.config = limits
        self.adapter_cache = adapter_cache
        self.waiting = FairQueue()
        self.running: list[SequenceState] = []
        self.prefix_cache = PrefixCache(limits.num_slots or limits.max_sequences, enabled=limits.prefix_cache)
        self.num_preemptions = 0
        self.num_prompt_tokens = 0
        self.num_cached_tokens = 0
        self._by_id: dict[str, SequenceState] = {}
        self._arrivals = 0

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._by_id

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[SequenceState]:
        return iter(list(self._by_id.values()))

    def get(self, request_id: str) -> SequenceState | None:
        """The sequence of a request, or ``None`` if it is not here."""
        return self._by_id.get(request_id)

    def add(self, request: Request) -> SequenceState:
        """Queue a request, and fetch its adapter if needed."""
        seed = request.sampling.seed
        tokens = list(request.prompt)
        sequence = SequenceState(
            request=request,
            num_pooled=len(tokens) - 1 if request.sampling.pooling == "last" else 0,
            arrival_index=self._arrivals,
            tokens=tokens,
            prefix=Prefix(request.adapter, tokens, request.cache_salt),
            rng=random.Random(seed) if seed is not None else random.Random(),
        )
        self._arrivals += 1
        self.waiting.add(sequence)
        self._by_id[request.id] = sequence
        if request.adapter is not None:
            self.adapter_cache.add_waiting(request.adapter)
        return sequence

    def finish(self, sequence: SequenceState, *, keep: bool = True) -> None:
        """Forget a sequence, in whatever state it is, and give back its slot and its adapter.

        ``keep``: other sequences may use what it has computed. Not after a failure, when that may be wrong.
        """
        if self._by_id.get(sequence.request.id) is not sequence:
            return  # it has ended already
        del self._by_id[sequence.request.id]
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence.request.adapter is not None:
            self.adapter_cache.remove_waiting(sequence.request.adapter)
        self.waiting.finish(sequence)
        self._release(sequence, keep=keep)

    def waiting_adapters(self) -> list[str]:
        """Adapters of waiting sequences, in the order in which they are to be put on the device, each once."""
        flows = self.waiting.by_adapter_turns(Counter(flow.tenant for flow in self._adapters_in_use()))
        return list(dict.fromkeys(flow.adapter for flow in flows if flow.adapter is not None))

    def schedule(self) -> list[ScheduledTokens]:
        """Decode every sequence that decodes, then spend the step's token budget on prompts, then on drafts."""
        for sequence in self.running:
            self.prefix_cache.record_computed(sequence.require_slot(), sequence.num_computed)
        self._make_room()
        self._share_places()
        self._share_device()
        decoding = [_scheduled(s, 1) for s in self.running if s.decoding]
        prefills = self._schedule_prefills()
        if any(item.sequence.spec_token_ids for item in decoding):
            decoding = self._with_drafts(decoding, self.config.step_tokens - sum(item.count for item in prefills))
        for item in decoding:
            self.waiting.charge(item.sequence, item.count)
        return decoding + prefills

    def starving_adapters(self) -> list[str]:
        """Those of ``waiting_adapters`` for which a sequence was overtaken ``max_overtakes`` times, in their order."""
        starving = {
            flow.adapter
            for flow in self.waiting.flows
            if not self._is_available(flow.adapter)
            and any(s.overtaken >= self.config.max_overtakes for s in flow.waiting)
        }
        return [adapter for adapter in self.waiting_adapters() if adapter in starving] if starving else []

    # -- prompts -------------------------------------------------------------------------------------------------
    def _schedule_prefills(self) -> list[ScheduledTokens]:
        """Distribute the budget: a share for the oldest prompt of whose turn it is, then those with the least left."""
        budget = self.config.step_tokens
        left = self._candidates()
        flow = min(map(self.waiting.flow, left), key=lambda flow: flow.turn, default=None)
        oldest = min((s for s in left if self.waiting.flow(s) is flow), key=lambda s: s.arrival_index, default=None)
        turns: Iterator[tuple[SequenceState, int]] = ((s, budget) for s in self.waiting.by_turns(left))
        if oldest is not None:
            turns = itertools.chain([(oldest, max(1, budget // OLDEST_SHARE))], turns)
        num_begun = sum(s.slot is not None for s in left)
        counts: dict[SequenceState, int] = {}
        full = False
        for sequence, most in turns:
            if budget <= 0:
                break
            if sequence.slot is None:
                if full or not self._fits(sequence):
                    full = full or sequence is oldest  # the next free slot is for it
                    continue
                crowded = num_begun >= MAX_CONCURRENT_PREFILLS and left[sequence] > budget
                if (crowded and sequence is not oldest) or self._leader(sequence) is not None:
                    continue
                budget -= self._admit(sequence) // COPIES_PER_TOKEN
                num_begun += 1
            done = counts.get(sequence, 0)
            count = min(most, max(budget, 1), sequence.num_left - done)
            counts[sequence] = done + count
            self.waiting.charge(sequence, count)
            budget -= count
            num_begun -= 0 < count == sequence.num_left - done
        return [_scheduled(s, count) for s, count in counts.items()]

    def _candidates(self) -> dict[SequenceState, int]:
        """Sequences that may get a part of this step's budget, with the number of tokens they have left to compute.

        A sequence that waits for a prefix which another one computes is not among them; it makes that one as urgent as
        itself.
        """
        left = {s: s.num_left for s in self.running if not s.decoding}
        if len(self.running) == self.config.max_sequences:
            return left
        for sequence in self.waiting.first(2 * self.config.max_sequences, self._is_available):
            if (leader := self._leader(sequence)) is not None:
                left[leader] = min(left[leader], len(sequence.tokens) - leader.num_computed)
            else:
                left[sequence] = len(sequence.tokens) - self._find(sequence).count
        return left

    def _fits(self, sequence: SequenceState, running: list[SequenceState] | None = None) -> bool:
        """Whether there is a slot, and room for all its tokens and one more if all retained tokens are evicted.

        ``running``: beside these, instead of all that run.
        """
        running = self.running if running is None else running
        if len(running) == self.config.max_sequences:
            return False
        return sequence.num_held <= self.config.cache_tokens - sum(s.num_held for s in running)

    def _find(self, sequence: SequenceState) -> PrefixHit:
        """The longest prefix of a waiting sequence that is in the cache."""
        return self.prefix_cache.find(sequence.prefix, sequence.num_reusable)

    def _leader(self, sequence: SequenceState) -> SequenceState | None:
        """The running sequence that computes so much of a waiting one's prefix that waiting for it is faster.

        The wait ends: the leader is running, and each wait ends with more of the prefix computed.
        """
        pending = self.prefix_cache.find_pending(sequence.prefix, sequence.num_reusable)
        if pending.holding is None:
            return None
        num_cached = self._find(sequence).count
        saved = pending.count - num_cached
        if saved < SHORTEST_WAIT or saved * WAIT_SHARE < len(sequence.tokens) - num_cached:
            return None
        return next((s for s in self.running if s.slot == pending.holding.slot and not s.decoding), None)

    def _admit(self, sequence: SequenceState) -> int:
        """Give a waiting sequence its adapter and its slot. Returns how many tokens are copied to the slot."""
        for flow in self.waiting.flows:
            if not self._is_available(flow.adapter):
                for other in flow.waiting:
                    other.overtaken += other.arrival_index < sequence.arrival_index
        adapter = sequence.request.adapter
        if adapter is not None:
            sequence.cached_adapter = self.adapter_cache.acquire(adapter)
        self.waiting.admit(sequence)
        self.running.append(sequence)
        sequence.num_admitted = len(sequence.tokens)
        hit = self._find(sequence)
        sequence.slot = self.prefix_cache.allocate(
            sequence.prefix, hit, room=self.config.cache_tokens - self._held_tokens()
        )
        sequence.num_computed = hit.count
        if sequence.num_cached is None:
            sequence.num_cached, sequence.queued_seconds = hit.count, time.monotonic() - sequence.arrived_at
            self.num_prompt_tokens += sequence.num_prompt
            self.num_cached_tokens += hit.count
        return 0 if hit.holding is None or hit.holding.slot == sequence.slot else hit.count

    def _is_available(self, adapter: str | None) -> bool:
        return adapter is None or self.adapter_cache.is_available(adapter)

    # -- drafts --------------------------------------------------------------------------------------------------
    def _with_drafts(self, decoding: list[ScheduledTokens], budget: int) -> list[ScheduledTokens]:
        """Append draft tokens to those that decode, ``budget`` at most. Nothing is evicted for them.

        An accepted draft adds the token after it too: neither may exceed the sequence's limits.
        """
        config = self.config
        budget = min(budget, config.cache_tokens - self._held_tokens() - self.prefix_cache.num_retained_tokens)
        items = []
        for item in decoding:
            sequence = item.sequence
            left = min(
                sequence.request.sampling.max_tokens - sequence.num_generated,
                min(config.max_length, config.cache_tokens) - len(sequence.tokens),
            )
            if drafts := sequence.spec_token_ids[: max(0, min(budget, left - 1))]:
                budget -= len(drafts)
                count = 1 + len(drafts)
                logits = range(item.start, item.start + count)
                item = ScheduledTokens(sequence, item.start, count, logits, spec_token_ids=drafts)
            items.append(item)
        return items

    # -- fair shares ---------------------------------------------------------------------------------------------
    def _share_places(self) -> None:
        """Preempt sequences of those that have more than a fair share of the places if the next one fits then."""
        sequence = self.waiting.next(self._is_available) if self.waiting.is_shared else None
        if sequence is None or self._fits(sequence) or self._leader(sequence) is not None:
            return
        for surplus in self._find_surplus(sequence):
            self._preempt(surplus)

    def _find_surplus(self, waiting: SequenceState) -> list[SequenceState]:
        """Running sequences that give their places to a waiting one; none if all that owe it some do not suffice."""
        stay = list(self.running)
        surplus: list[SequenceState] = []
        while not self._fits(waiting, stay):
            if (given := self._find_debtor(waiting, stay)) is None:
                return []
            stay.remove(given)
            surplus.append(given)
        return surplus

    def _find_debtor(self, waiting: SequenceState, running: list[SequenceState]) -> SequenceState | None:
        """The next of the running sequences that gives its place to a waiting one, if that is fair.

        It is the youngest that has had its quantum, of the tenant with the most places, or the most tokens where these
        are what is missing; then of the adapter with the most, where both are of one tenant.
        """
        full = len(running) == self.config.max_sequences
        size: Callable[[SequenceState], int] = (lambda _: 1) if full else (lambda s: s.num_held)
        ready = sorted(filter(_had_quantum, running), key=lambda s: s.arrival_index)
        flow = self.waiting.flow(waiting)
        of_tenant = [s for s in ready if self._tenant(s) is flow.tenant]
        for counter_of, some, lead in ((self._tenant, ready, SLICE), (self._adapter_share, of_tenant, math.inf)):
            held = _held_by(counter_of, running, size)
            mine = counter_of(waiting)
            youngest = {counter_of(s): s for s in some}
            debtors = [
                counter
                for counter, s in youngest.items()
                if owes(counter, mine, held, gives=size(s), takes=size(waiting), lead=lead)
            ]
            if debtors:
                return youngest[max(debtors, key=lambda counter: held[counter] / counter.weight)]
        return None

    def _share_device(self) -> None:
        """Preempt what uses adapters of tenants that have more than a fair share of the device, for the next adapter.

        They are drained, so that the next swap evicts them.
        """
        unplaced = [flow for flow in self.waiting.flows if self._tier(flow.adapter) == "host"]
        if not unplaced:
            return
        in_use = self._adapters_in_use()
        held = Counter(flow.tenant for flow in in_use)
        wanted = self.waiting.by_adapter_turns(held)[0]
        if wanted not in unplaced or wanted.adapter is None:
            return
        num_missing = self.adapter_cache.adapters[wanted.adapter].num_pages - self.adapter_cache.num_reclaimable_pages()
        given: dict[CachedAdapter, list[SequenceState]] = {}
        for sequences in sorted(in_use.values(), key=len):
            adapter, tenant = sequences[0].cached_adapter, self._tenant(sequences[0])
            if adapter is None or adapter.num_running > len(sequences) or not all(map(_had_quantum, sequences)):
                continue
            if num_missing > 0 and owes(tenant, wanted.tenant, held, gives=1, takes=1, lead=math.inf):
                held[tenant] -= 1
                num_missing -= len(adapter.pages)
                given[adapter] = sequences
        if num_missing > 0:
            return
        for adapter, sequences in given.items():
            for sequence in sequences:
                self._preempt(sequence)
            self.adapter_cache.drain(adapter)

    def _adapters_in_use(self) -> dict[Flow, list[SequenceState]]:
        """The running sequences that use adapters, by flow."""
        in_use: dict[Flow, list[SequenceState]] = {}
        for sequence in self.running:
            if sequence.request.adapter is not None:
                in_use.setdefault(self.waiting.flow(sequence), []).append(sequence)
        return in_use

    def _tier(self, adapter: str | None) -> Tier | None:
        return None if adapter is None else self.adapter_cache.adapters[adapter].tier

    def _tenant(self, sequence: SequenceState) -> TokenCounter:
        return self.waiting.flow(sequence).tenant

    def _adapter_share(self, sequence: SequenceState) -> TokenCounter:
        return self.waiting.flow(sequence).share

    # -- slots and tokens ----------------------------------------------------------------------------------------
    def _held_tokens(self) -> int:
        """Tokens of running sequences, and the token by which each of them may grow in this step."""
        return sum(s.num_held for s in self.running)

    def _make_room(self) -> None:
        """Make room for one more token of every running sequence: evict retained ones, preempt running ones.

        The oldest stays, and so does who has not had its quantum while another has. Otherwise a prompt that is so long
        that its tenant holds most would lose its place again and again before it is computed.
        """
        while len(self.running) > 1 and self._held_tokens() > self.config.cache_tokens:
            held = _held_by(self._tenant, self.running, lambda s: s.num_held)
            younger = sorted(self.running, key=lambda s: s.arrival_index)[1:]
            some = [s for s in younger if _had_quantum(s)] or younger
            greediest = max(map(self._tenant, some), key=lambda tenant: held[tenant] / tenant.weight)
            self._preempt(next(s for s in reversed(some) if self._tenant(s) is greediest))
        self.prefix_cache.shrink(max(0, self.config.cache_tokens - self._held_tokens()))

    def _preempt(self, sequence: SequenceState) -> None:
        """Put a running sequence back into the queue, to be computed again.

        Its overtakes stay counted: ``max_overtakes`` holds for all its waits together, however often it is preempted.
        """
        self.running.remove(sequence)
        self._release(sequence, keep=True)
        sequence.num_computed = 0
        if sequence.request.adapter is not None:
            self.adapter_cache.add_waiting(sequence.request.adapter)
        self.waiting.requeue(sequence)
        self.num_preemptions += 1

    def _release(self, sequence: SequenceState, *, keep: bool) -> None:
        sequence.spec_token_ids = ()
        if sequence.slot is not None:
            self.prefix_cache.release(sequence.slot, sequence.num_computed, keep=keep)
            sequence.slot = None
        if sequence.cached_adapter is not None:
            self.adapter_cache.release(sequence.cached_adapter)
            sequence.cached_adapter = None


def _had_quantum(sequence: SequenceState) -> bool:
    return len(sequence.tokens) - sequence.num_admitted >= QUANTUM


def _held_by(
    counter_of: Callable[[SequenceState], TokenCounter],
    running: list[SequenceState],
    size: Callable[[SequenceState], int],
) -> Counter[TokenCounter]:
    """How much these sequences hold, summed up for each that shares."""
    held: Counter[TokenCounter] = Counter()
    for sequence in running:
        held[counter_of(sequence)] += size(sequence)
    return held


def _scheduled(sequence: SequenceState, count: int) -> ScheduledTokens:
    """The next ``count`` tokens, with logits for all if the prompt's are requested, else for the newest token.

    A pooled prompt has hidden states in their place.
    """
    start = sequence.num_computed
    stop = start + count
    first = stop
    if sequence.request.sampling.pooling is not None:
        hidden = range(min(max(start, sequence.num_pooled), stop), stop)
        return ScheduledTokens(sequence, start, count, range(stop, stop), hidden)
    if sequence.request.sampling.prompt_logprobs is not None:
        first = start
    elif stop == len(sequence.tokens):
        first = stop - 1
    return ScheduledTokens(sequence, start, count, range(first, stop))
