"""Who runs in the next step: admission, chunked prefill, preemption. Plain Python, no torch.

A sequence waits until it has an adapter in the bank, a slot in the key-value cache and room in the token budget; then
its prompt is computed in chunks beside the sequences that already decode, and then it decodes a token a step. When the
cache's tokens run out, the sequence that came last gives its slot back and is computed again later: what it has
already said is kept, so nobody notices but the clock.

Fairness: waiting sequences are taken in order of arrival; one whose adapter is not resident yet is passed over, but
only ``max_overtakes`` times. Then nothing younger is admitted until it has been.

Knows nothing of tensors, tokens' meaning, or where adapters are stored.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from graftwork.server.engine.request import Request
from graftwork.server.engine.residency import Residency, Seat


@dataclass(eq=False, slots=True)
class Sequence:
    """A request on its way: what was said so far, how much of it the cache holds, and where.

    ``num_scored`` counts prompt tokens whose log-probabilities have been told.
    """

    request: Request
    order: int
    tokens: list[int]
    rng: random.Random
    num_computed: int = 0
    slot: int | None = None
    seat: Seat | None = None
    overtaken: int = 0
    output_counts: dict[int, int] = field(default_factory=dict)
    num_scored: int = 0

    @property
    def num_prompt(self) -> int:
        return len(self.request.prompt)

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - len(self.request.prompt)

    @property
    def decoding(self) -> bool:
        """All but the newest token are in the cache, and there is a newest token of our own."""
        return self.num_computed == len(self.tokens) - 1 and self.num_generated > 0


@dataclass(frozen=True, slots=True)
class Work:
    """``count`` tokens of ``sequence``, from ``start`` on, to be computed in this step."""

    sequence: Sequence
    start: int
    count: int

    @property
    def completes(self) -> bool:
        """The last known token is computed: its logits choose the next one."""
        return self.start + self.count == len(self.sequence.tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """``max_sequences`` slots of ``max_length`` tokens; ``cache_tokens`` over all; ``step_tokens`` of prompt a step."""

    max_sequences: int
    max_length: int
    cache_tokens: int
    step_tokens: int = 256
    max_overtakes: int = 64


class Scheduler:
    """Waiting and running sequences. ``schedule`` says what to compute, ``release`` gives back what a sequence held."""

    def __init__(self, limits: Limits, residency: Residency) -> None:
        self.limits = limits
        self.residency = residency
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self._free_slots = list(range(limits.max_sequences))
        self._by_id: dict[str, Sequence] = {}
        self._arrivals = 0

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._by_id

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(list(self._by_id.values()))

    def get(self, request_id: str) -> Sequence | None:
        return self._by_id.get(request_id)

    def add(self, request: Request) -> Sequence:
        seed = request.sampling.seed
        sequence = Sequence(
            request=request,
            order=self._arrivals,
            tokens=list(request.prompt),
            rng=random.Random(seed) if seed is not None else random.Random(),
        )
        self._arrivals += 1
        self.waiting.append(sequence)
        self._by_id[request.id] = sequence
        if request.adapter is not None:
            self.residency.want(request.adapter)
        return sequence

    def finish(self, sequence: Sequence) -> None:
        """Forget a sequence, in whatever state it is, and give back its slot and its seat in the bank."""
        self._by_id.pop(sequence.request.id, None)
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
            if sequence.request.adapter is not None:
                self.residency.unwant(sequence.request.adapter)
        self._release(sequence)

    def schedule(self) -> list[Work]:
        """Decode everything that decodes, then fill the step's token budget with prompts, oldest first."""
        self._make_room()
        budget = self.limits.step_tokens
        work = [Work(s, s.num_computed, 1) for s in self.running if s.decoding]
        for sequence in self.running:
            if not sequence.decoding and budget > 0:
                budget -= self._append_chunk(work, sequence, budget)
        passed: list[Sequence] = []
        for sequence in list(self.waiting):
            if budget <= 0:
                break
            if not self._seatable(sequence):
                passed.append(sequence)
                if self._holds_the_line(sequence):
                    break
                continue
            if not self._admit(sequence):
                break
            for other in passed:
                other.overtaken += 1
            budget -= self._append_chunk(work, sequence, budget)
        return work

    def _append_chunk(self, work: list[Work], sequence: Sequence, budget: int) -> int:
        count = min(budget, len(sequence.tokens) - sequence.num_computed)
        work.append(Work(sequence, sequence.num_computed, count))
        return count

    def wanted_adapters(self) -> list[str]:
        """Adapters of waiting sequences, oldest sequence first, each once."""
        return list(dict.fromkeys(s.request.adapter for s in self.waiting if s.request.adapter is not None))

    def _seatable(self, sequence: Sequence) -> bool:
        adapter = sequence.request.adapter
        return adapter is None or self.residency.seatable(adapter)

    def _holds_the_line(self, sequence: Sequence) -> bool:
        """Overtaken often enough: nothing younger starts until those who hold the pages have left."""
        adapter = sequence.request.adapter
        return (
            adapter is not None
            and sequence.overtaken >= self.limits.max_overtakes
            and self.residency.short_of_pages(adapter)
        )

    def _admit(self, sequence: Sequence) -> bool:
        free_tokens = self.limits.cache_tokens - self._held_tokens()
        if not self._free_slots or len(sequence.tokens) + 1 > free_tokens:
            return False
        adapter = sequence.request.adapter
        if adapter is not None:
            sequence.seat = self.residency.sit(adapter)
        sequence.slot = heapq.heappop(self._free_slots)
        self.waiting.remove(sequence)
        self.running.append(sequence)
        return True

    def _held_tokens(self) -> int:
        return sum(len(s.tokens) for s in self.running)

    def _make_room(self) -> None:
        """Every running sequence may grow by a token: preempt from the youngest until that fits."""
        while len(self.running) > 1 and self._held_tokens() + len(self.running) > self.limits.cache_tokens:
            youngest = max(self.running, key=lambda s: s.order)
            self.running.remove(youngest)
            self._release(youngest)
            self._requeue(youngest)
            self.num_preemptions += 1

    def _requeue(self, sequence: Sequence) -> None:
        """Back to the head of the line, in order of arrival, to be computed from the start."""
        sequence.num_computed = 0
        if sequence.request.adapter is not None:
            self.residency.want(sequence.request.adapter)
        index = next((i for i, s in enumerate(self.waiting) if s.order > sequence.order), len(self.waiting))
        self.waiting.insert(index, sequence)

    def _release(self, sequence: Sequence) -> None:
        if sequence.slot is not None:
            heapq.heappush(self._free_slots, sequence.slot)
            sequence.slot = None
        if sequence.seat is not None:
            self.residency.stand(sequence.seat)
            sequence.seat = None
