"""The fleet: users that ask again when they have an answer, a policy that chooses replicas, and what goes wrong.

The parts of a run follow one another: a steady one, then replicas that fail, a rolling update, and users that become
more and fewer while replicas are added and removed.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from benchmarks.fleet.policies import Policy, make_policy
from benchmarks.fleet.replica import Changes, Replica, SimulatedRequest
from benchmarks.fleet.workload import FleetSizes, StepTimes, asks

#: The adapters that are asked for most; all others count as rare.
FREQUENT: Final = 1000

#: One replica in so many is updated at once, or is added or removed at once.
UPDATED, SCALED = 20, 20

#: Autoscaling keeps the mean load within these times what the fleet was made for, and looks each second.
SCALE_UP, SCALE_DOWN = 1.2, 0.85

#: Room for replicas that are added, and how many users there are then for each there was.
SPARE, CROWD = 1.5, 1.5


@dataclass(slots=True)
class PartReport:
    """What was measured in one part of a run.

    Attributes:
        part: Its name.
        requests: Answered.
        hits: Share whose adapter was on the device when they came to their engine.
        first_token_p50_ms: From asking to the first token, the median.
        first_token_p99_ms: Its 99th percentile.
        frequent_p99_ms: The same of the thousand adapters that are asked for most.
        rare_p99_ms: The same of all others.
        tokens_per_second: Of a replica, in the second half of the part.
        peak: The highest load of a replica when it was given a request, relative to the mean then.
        taken_over: Requests that another replica took over.
        lost: Answers that were cut off with an error.
        replicas: In the mean.
    """

    part: str
    requests: int = 0
    hits: float = 0.0
    first_token_p50_ms: float = 0.0
    first_token_p99_ms: float = 0.0
    frequent_p99_ms: float = 0.0
    rare_p99_ms: float = 0.0
    tokens_per_second: float = 0.0
    peak: float = 0.0
    taken_over: int = 0
    lost: int = 0
    replicas: float = 0.0


@dataclass(slots=True)
class _Part:
    """What is counted while a part runs."""

    name: str
    began: float
    half: float | None = None
    requests: int = 0
    hits: int = 0
    tokens: int = 0
    first_tokens: list[float] = field(default_factory=list)
    are_rare: list[bool] = field(default_factory=list)
    peak: float = 0.0
    taken_over: int = 0
    lost: int = 0
    replica_seconds: float = 0.0
    half_replica_seconds: float = 0.0


class Fleet:
    """Simulates one policy.

    Args:
        policy: Its name.
        sizes: Of the fleet.
        times: Of its engines.
    """

    def __init__(self, policy: str, sizes: FleetSizes, times: StepTimes) -> None:
        self._sizes, self._times = sizes, times
        self._num_places = int(sizes.replicas * SPARE)
        self._policy: Policy = make_policy(policy, self._num_places, sizes.in_flight, sizes.seed)
        self._random = random.Random(sizes.seed)
        self._asks = asks(sizes)
        self._digests = [f"sha256:{rank}" for rank in range(sizes.adapters)]
        self._replicas: list[Replica | None] = [None] * self._num_places
        self._usable = np.zeros(self._num_places, dtype=bool)
        self._loads = np.zeros(self._num_places, dtype=np.int64)
        self._num_open: Counter[str] = Counter()
        self._num_usable = 0
        self._usable_load = 0
        self._users = 0
        self._wanted_users = sizes.users
        self._starting = 0
        self._updating: set[int] = set()
        self._to_update: deque[int] = deque()
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()
        self._now = 0.0
        self._counted_at = 0.0
        self._burst_number, self._burst_rank = -1, 0
        self._part = _Part("steady", 0.0)
        for place in range(sizes.replicas):
            self._up(place)

    def run(self) -> list[PartReport]:
        """Simulate all parts."""
        sizes = self._sizes
        for user in range(self._wanted_users):  # within a second, so that steps do not go in time with one another
            self._at(user / self._wanted_users, self._new_user)
        reports = [self._run_part("steady", sizes.requests)]
        if sizes.disturbed:
            reports.append(self._run_part("failures", sizes.disturbed, self._fail_some))
            reports.append(self._run_part("rolling update", sizes.disturbed, self._update_some))
            reports.append(self._run_part("autoscaling", sizes.disturbed, self._scale))
        return reports

    def _run_part(self, name: str, requests: int, disturb: Callable[[], None] | None = None) -> PartReport:
        self._count_replicas()
        part = self._part = _Part(name, self._now)
        if name == "rolling update":
            self._to_update = deque(np.flatnonzero(self._usable).tolist())
        if disturb is not None:
            self._at(self._now, self._again, disturb, part)
        while part.requests < requests:
            if part.half is None and part.requests >= requests // 2:
                self._count_replicas()
                part.half, part.tokens, part.half_replica_seconds = self._now, 0, 0.0
            if name == "autoscaling":
                busy = part.requests < requests // 2
                self._wanted_users = int(self._sizes.users * (CROWD if busy else 1))
                while self._users < self._wanted_users:
                    self._new_user()
            self._now, _, call, arguments = heapq.heappop(self._events)
            call(*arguments)
        self._count_replicas()
        return _report(part, self._now)

    def _at(self, when: float, call: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (when, next(self._order), call, arguments))

    # -- requests ------------------------------------------------------------------------------------------------
    def _new_user(self) -> None:
        self._users += 1
        self._ask()

    def _ask(self) -> None:
        ask = next(self._asks)
        rank = self._in_burst() if ask.in_burst else ask.adapter
        self._place(SimulatedRequest(self._digests[rank], rank, ask.new_tokens, self._now))

    def _in_burst(self) -> int:
        """The adapter that everyone asks for now."""
        number = int(self._now / self._sizes.burst_seconds)
        if number != self._burst_number:
            self._burst_number, self._burst_rank = number, self._random.randrange(self._sizes.adapters)
        return self._burst_rank

    def _place(self, request: SimulatedRequest) -> None:
        if not self._num_usable:
            self._at(self._now + 1, self._place, request)
            return
        adapter = request.adapter
        place = self._policy.choose(adapter, self._loads, self._usable, self._num_open[adapter], self._now)
        self._num_open[adapter] += 1
        self._loads[place] += 1
        self._usable_load += 1
        if self._users >= self._wanted_users:  # not while the first come
            self._part.peak = max(self._part.peak, int(self._loads[place]) * self._num_usable / self._usable_load)
        replica = self._replicas[place]
        assert replica is not None
        self._apply(place, replica, replica.submit(request, self._now))

    def _fetched(self, place: int, replica: Replica, adapter: str) -> None:
        if self._replicas[place] is replica:
            self._apply(place, replica, replica.fetched(adapter, self._now))

    def _end(self, place: int, replica: Replica, version: int) -> None:
        if self._replicas[place] is replica and replica.version == version:
            self._apply(place, replica, replica.end(self._now))

    def _apply(self, place: int, replica: Replica, changes: Changes) -> None:
        for adapter in changes.loaded:
            self._policy.loaded(place, adapter)
        for adapter in changes.evicted:
            self._policy.evicted(place, adapter)
        for when, adapter in changes.fetches:
            self._at(when, self._fetched, place, replica, adapter)
        if (when_ends := replica.next_end()) is not None:
            self._at(when_ends, self._end, place, replica, replica.version)
        for request in changes.ended:
            self._take_off(place, request)
            self._record(request)
            self._next()
        if place in self._updating and not self._loads[place]:
            self._updating.discard(place)
            self._start_again(place)

    def _take_off(self, place: int, request: SimulatedRequest) -> None:
        self._num_open[request.adapter] -= 1
        if not self._num_open[request.adapter]:
            del self._num_open[request.adapter]
        self._loads[place] -= 1
        if self._usable[place]:
            self._usable_load -= 1

    def _next(self) -> None:
        """A user who has an answer asks again, unless there are to be fewer."""
        if self._users > self._wanted_users:
            self._users -= 1
        else:
            self._ask()

    def _record(self, request: SimulatedRequest) -> None:
        part = self._part
        part.requests += 1
        part.hits += request.is_hit
        part.tokens += request.new_tokens
        part.first_tokens.append(request.first_token_at - request.asked_at)
        part.are_rare.append(request.rank >= FREQUENT)
        part.taken_over += request.taken_over

    # -- replicas ------------------------------------------------------------------------------------------------
    def _up(self, place: int) -> None:
        self._count_replicas()
        self._replicas[place] = Replica(self._sizes, self._times)
        self._set_usable(place, True)

    def _set_usable(self, place: int, usable: bool) -> None:
        self._count_replicas()
        self._usable[place] = usable
        self._num_usable = int(self._usable.sum())
        self._usable_load = int(self._loads[self._usable].sum())

    def _start_again(self, place: int) -> None:
        self._replicas[place] = None
        self._policy.lost(place)
        self._at(self._now + self._sizes.restart_seconds, self._up, place)

    def _again(self, disturb: Callable[[], None], part: _Part) -> None:
        """Disturb once a second until the part is over."""
        if self._part is part:
            disturb()
            self._at(self._now + 1, self._again, disturb, part)

    def _fail_some(self) -> None:
        """Kill replicas: what has not begun is taken over once, the rest is lost, and its users ask again."""
        for place in [
            place for place in np.flatnonzero(self._usable).tolist() if self._random.random() * self._sizes.failing < 1
        ]:
            replica = self._replicas[place]
            assert replica is not None
            self._set_usable(place, False)
            self._start_again(place)
            for request in replica.lose():
                self._take_off(place, request)
                has_begun = 0 < request.first_token_at <= self._now
                if has_begun or request.taken_over:
                    self._part.lost += 1
                    self._next()
                else:
                    request.taken_over, request.first_token_at = True, 0.0
                    self._place(request)

    def _update_some(self) -> None:
        """Drain a few replicas, and start each again when it has ended its answers; then the next."""
        most = max(1, self._sizes.replicas // UPDATED)
        while self._to_update and int((~self._usable[: self._sizes.replicas]).sum()) < most:
            self._drain(self._to_update.popleft())

    def _drain(self, place: int) -> None:
        if not self._usable[place]:
            return
        self._set_usable(place, False)
        if self._loads[place]:
            self._updating.add(place)
        else:
            self._start_again(place)

    def _scale(self) -> None:
        """Add replicas where the mean load is high, remove the last ones where it is low."""
        load = self._usable_load / max(1, self._num_usable + self._starting) / self._sizes.in_flight
        step = max(1, self._sizes.replicas // SCALED)
        if load > SCALE_UP:
            free = [place for place, replica in enumerate(self._replicas) if replica is None][:step]
            for place in free:
                self._starting += 1
                self._at(self._now + self._sizes.restart_seconds, self._added, place)
        elif load < SCALE_DOWN and self._num_usable > self._sizes.replicas:
            for place in np.flatnonzero(self._usable)[-step:].tolist():
                self._set_usable(place, False)

    def _added(self, place: int) -> None:
        self._starting -= 1
        self._up(place)

    def _count_replicas(self) -> None:
        """Add what the usable replicas have had of time since this was called last."""
        seconds = (self._now - self._counted_at) * self._num_usable
        self._part.replica_seconds += seconds
        self._part.half_replica_seconds += seconds
        self._counted_at = self._now


def _report(part: _Part, now: float) -> PartReport:
    first_tokens, are_rare = np.array(part.first_tokens) * 1e3, np.array(part.are_rare)

    def percentile(values: np.ndarray[Any, Any], q: float) -> float:
        return float(np.percentile(values, q)) if len(values) else 0.0

    return PartReport(
        part=part.name,
        requests=part.requests,
        hits=part.hits / part.requests,
        first_token_p50_ms=percentile(first_tokens, 50),
        first_token_p99_ms=percentile(first_tokens, 99),
        frequent_p99_ms=percentile(first_tokens[~are_rare], 99),
        rare_p99_ms=percentile(first_tokens[are_rare], 99),
        tokens_per_second=part.tokens / part.half_replica_seconds,
        peak=part.peak,
        taken_over=part.taken_over,
        lost=part.lost,
        replicas=part.replica_seconds / (now - part.began),
    )
