"""Waiting sequences, and whose turn it is: fair shares for tenants, and for the adapters of a tenant. Plain Python.

Each tenant has a counter of the tokens that were computed for it, divided by its weight, and the tenant with the lowest
counter comes first (virtual token counters: Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024).
Inside a tenant its adapters share in the same way, and of one adapter's sequences the oldest comes first. Nobody saves
up for later: who begins to wait starts from the lowest counter of those who wait, or from his own if that is higher. So
a tenant that is alone gets everything, and owes nothing for it when another comes; and one that has a sequence running
all the time, but none waiting, has no claim to what others were served meanwhile.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

from graftwork.server.engine.sequence import SequenceState

K = TypeVar("K", bound=Hashable)


@dataclass(eq=False, slots=True)
class TokenCounter:
    """What one of those that share was served.

    Attributes:
        weight: Its share, beside the weights of the others.
        served: Tokens computed for it, divided by ``weight``.
        num_sequences: How many of its sequences wait or run.
        num_waiting: How many of them wait.
    """

    weight: float = 1.0
    served: float = 0.0
    num_sequences: int = 0
    num_waiting: int = 0


class TokenCounters(Generic[K]):
    """The counters of all that share one thing and have sequences, or have had more of it than those that have."""

    def __init__(self) -> None:
        self._counters: dict[K, TokenCounter] = {}

    def join(self, key: K, weight: float = 1.0) -> TokenCounter:
        """Count one more sequence of ``key``."""
        counter = self._counters.setdefault(key, TokenCounter())
        counter.weight = weight
        counter.num_sequences += 1
        return counter

    def leave(self, key: K) -> None:
        """Count one sequence less, and forget all that would be lifted in any case if they came back."""
        self._counters[key].num_sequences -= 1
        if not self._counters[key].num_sequences:
            lowest = min(self._present(), default=math.inf)
            self._counters = {k: c for k, c in self._counters.items() if c.num_sequences or c.served > lowest}

    def wait(self, key: K) -> None:
        """Count one more that waits. Who had none waiting is lifted to the lowest counter of those who had.

        If nobody had, there was enough for all, and nobody owes anything: then he is lifted to the highest counter.
        """
        counter = self._counters[key]
        if not counter.num_waiting:
            waiting = [other.served for other in self._counters.values() if other.num_waiting]
            counter.served = max(counter.served, min(waiting) if waiting else max(self._present()))
        counter.num_waiting += 1

    def stop_waiting(self, key: K) -> None:
        """Count one less that waits."""
        self._counters[key].num_waiting -= 1

    def _present(self) -> Iterator[float]:
        return (counter.served for counter in self._counters.values() if counter.num_sequences)


@dataclass(eq=False, slots=True)
class Flow:
    """The sequences of one adapter of one tenant.

    Attributes:
        tenant_name: Whose they are.
        adapter: Its digest; ``None``: the bare base.
        tenant: The tenant's counter.
        share: The adapter's counter among those of the tenant.
        waiting: Those that wait, oldest first.
    """

    tenant_name: str
    adapter: str | None
    tenant: TokenCounter
    share: TokenCounter
    waiting: list[SequenceState] = field(default_factory=list)

    @property
    def turn(self) -> tuple[float, float]:
        """The flow for which this is lowest comes first."""
        return self.tenant.served, self.share.served

    def oldest(self) -> SequenceState | None:
        """The first that waits for nothing but its turn."""
        return next((sequence for sequence in self.waiting if not sequence.awaits_grammar), None)


class FairQueue:
    """The waiting sequences of a scheduler, and counters of what was computed for everybody.

    A sequence joins with ``add``, waits until ``admit``, may wait again after ``requeue``, and leaves with ``finish``.
    """

    def __init__(self) -> None:
        self._flows: dict[tuple[str, str | None], Flow] = {}
        self._flow_of: dict[SequenceState, Flow] = {}
        self._tenants: TokenCounters[str] = TokenCounters()
        self._adapters: dict[str, TokenCounters[str | None]] = {}

    def __len__(self) -> int:
        return sum(len(flow.waiting) for flow in self._flows.values())

    def __iter__(self) -> Iterator[SequenceState]:
        """Those that wait, flow by flow."""
        return (sequence for flow in self._flows.values() for sequence in flow.waiting)

    def __contains__(self, sequence: SequenceState) -> bool:
        flow = self._flow_of.get(sequence)
        return flow is not None and sequence in flow.waiting

    def flow(self, sequence: SequenceState) -> Flow:
        """The flow of a sequence that waits or runs."""
        return self._flow_of[sequence]

    @property
    def flows(self) -> list[Flow]:
        """All that have waiting sequences."""
        return [flow for flow in self._flows.values() if flow.waiting]

    @property
    def is_shared(self) -> bool:
        """Whether several tenants or adapters have sequences, waiting or running."""
        return len(self._flows) > 1

    # -- a sequence's way --------------------------------------------------------------------------------------------
    def add(self, sequence: SequenceState) -> None:
        """Queue a new sequence."""
        tenant, adapter = sequence.request.tenant, sequence.request.adapter
        tenant_counter = self._tenants.join(tenant, sequence.request.weight)
        share = self._adapters.setdefault(tenant, TokenCounters()).join(adapter)
        flow = self._flows.setdefault((tenant, adapter), Flow(tenant, adapter, tenant_counter, share))
        self._flow_of[sequence] = flow
        self.requeue(sequence)

    def requeue(self, sequence: SequenceState) -> None:
        """Queue a sequence that was preempted, in order of arrival."""
        flow = self.flow(sequence)
        bisect.insort(flow.waiting, sequence, key=_arrival)
        self._tenants.wait(flow.tenant_name)
        self._adapters[flow.tenant_name].wait(flow.adapter)

    def admit(self, sequence: SequenceState) -> None:
        """Take a sequence out of the queue: it runs."""
        flow = self.flow(sequence)
        flow.waiting.remove(sequence)
        self._tenants.stop_waiting(flow.tenant_name)
        self._adapters[flow.tenant_name].stop_waiting(flow.adapter)

    def finish(self, sequence: SequenceState) -> None:
        """Forget a sequence that runs or waits."""
        if sequence in self:
            self.admit(sequence)
        flow = self._flow_of.pop(sequence)
        self._adapters[flow.tenant_name].leave(flow.adapter)
        self._tenants.leave(flow.tenant_name)
        if not flow.share.num_sequences:
            del self._flows[flow.tenant_name, flow.adapter]
        if not flow.tenant.num_sequences:
            del self._adapters[flow.tenant_name]

    def charge(self, sequence: SequenceState, num_tokens: int) -> None:
        """Count tokens that are computed for a sequence."""
        flow = self._flow_of[sequence]
        flow.share.served += num_tokens
        flow.tenant.served += num_tokens / flow.tenant.weight

    # -- turns -------------------------------------------------------------------------------------------------------
    def first(self, count: int, is_available: Callable[[str | None], bool]) -> list[SequenceState]:
        """Up to ``count`` sequences that can start, some of each flow, in the order of turns.

        Args:
            count: The most that are returned.
            is_available: Whether an adapter can be used now.
        """
        flows = [flow for flow in self._flows.values() if flow.waiting and is_available(flow.adapter)]
        flows.sort(key=_turn)
        share = max(1, count // max(1, len(flows)))
        found: list[SequenceState] = []
        for flow in flows[:count]:
            found += islice((sequence for sequence in flow.waiting if not sequence.awaits_grammar), share)
        return found

    def next(self, is_available: Callable[[str | None], bool]) -> SequenceState | None:
        """The sequence whose turn it is, of those that can start."""
        found, turn = None, (math.inf, math.inf)
        for flow in self._flows.values():
            if flow.waiting and flow.turn < turn and is_available(flow.adapter) and (oldest := flow.oldest()):
                found, turn = oldest, flow.turn
        return found

    def by_turns(self, left: Mapping[SequenceState, int]) -> Iterator[SequenceState]:
        """Sequences in the order in which prompts are computed, as the counters stand when the next one is asked for.

        Args:
            left: Sequences that wait or run, with the tokens they have left to compute; of one flow those with the
                least left come first.
        """
        flows: dict[Flow, list[SequenceState]] = {}
        for sequence in left:
            flows.setdefault(self._flow_of[sequence], []).append(sequence)
        for sequences in flows.values():
            sequences.sort(key=lambda s: (left[s], s.arrival_index), reverse=True)
        turns = [(flow.turn, number, flow) for number, flow in enumerate(flows)]
        heapq.heapify(turns)
        while turns:
            turn, number, flow = turns[0]
            if turn != flow.turn:  # it or its tenant has had something since
                heapq.heapreplace(turns, (flow.turn, number, flow))
            elif flows[flow]:
                yield flows[flow].pop()
            else:
                heapq.heappop(turns)

    def by_adapter_turns(self, running: Mapping[TokenCounter, int]) -> list[Flow]:
        """Flows that wait, in the order in which their adapters are to be put on the device.

        A tenant's first is that of its oldest sequence, and its n-th comes beside the others' n-th: adapters of its
        running sequences are counted, so that nobody fills the device before others have a place.

        Args:
            running: How many adapters each tenant's running sequences use.
        """
        turns: list[tuple[float, int, Flow]] = []
        places = dict(running)
        for flow in sorted(self.flows, key=_first_arrival):
            if flow.adapter is not None:
                place = places[flow.tenant] = places.get(flow.tenant, 0) + 1
                turns.append((place / flow.tenant.weight, flow.waiting[0].arrival_index, flow))
        return [flow for _, _, flow in sorted(turns)]


def owes(
    one: TokenCounter, other: TokenCounter, held: Mapping[TokenCounter, int], *, gives: int, takes: int, lead: float
) -> bool:
    """Whether one that shares must give something it holds to another that waits and was served less.

    It must if it then still holds no less than the other, so that the other never has to give it back; or if it holds
    more and is ahead by ``lead`` tokens, so that they change places.

    Args:
        one: The one that holds something.
        other: The one that waits.
        held: What everybody holds.
        gives: How much would be given.
        takes: How much the other would hold more.
        lead: In tokens of weight 1.
    """
    if one.served <= other.served:
        return False
    return (held[one] - gives) / one.weight >= (held[other] + takes) / other.weight or (
        held[one] / one.weight > held[other] / other.weight and one.served - other.served >= lead
    )


def _arrival(sequence: SequenceState) -> int:
    return sequence.arrival_index


def _first_arrival(flow: Flow) -> int:
    return flow.waiting[0].arrival_index


def _turn(flow: Flow) -> tuple[float, float]:
    return flow.turn
