"""What is simulated: how large the fleet is, what users ask for, how long engines take, and what goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

#: Requests drawn at once.
_BLOCK: Final = 1 << 14


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """How long an engine takes, in milliseconds. The defaults are those of docs/benchmarks.md, on two cores.

    Attributes:
        step: A decoding step without rows.
        row: More for each sequence.
        adapter: More for each different adapter among them.
        prompt_token: Computing one token of a prompt.
        fetch: Reading an adapter that is nowhere but in the store.
        copy: Copying an adapter to the device, for which the step waits.
    """

    step: float = 6.6
    row: float = 0.5
    adapter: float = 0.25
    prompt_token: float = 0.5
    fetch: float = 77.0
    copy: float = 2.0


@dataclass(frozen=True, kw_only=True)
class FleetSizes:
    """The sizes of the simulation.

    Attributes:
        replicas: Engines.
        adapters: Registered adapters, the k-th asked for 1/k^``exponent`` as often as the first.
        exponent: Of Zipf's law.
        slots: Adapters that an engine has on its device.
        max_batch: Sequences that an engine runs at once.
        in_flight: Requests under way for each engine: whoever has an answer asks again at once.
        requests: Answered in the steady part.
        disturbed: Answered in each of the other parts.
        prompt_tokens: Of a prompt.
        new_tokens: Of an answer, in the mean; from a quarter to seven quarters of it.
        burst_share: Of all requests those for one adapter, drawn from all, that everyone asks for; then for another.
        burst_seconds: How long everyone asks for the same.
        failing: Of so many engines one fails each second, where failures are simulated.
        restart_seconds: From an engine's end until it is ready again, with nothing on its device.
        seed: Of all random numbers.
    """

    replicas: int = 1000
    adapters: int = 100_000
    exponent: float = 1.0
    slots: int = 200
    max_batch: int = 32
    in_flight: int = 4
    requests: int = 1_000_000
    disturbed: int = 100_000
    prompt_tokens: int = 110
    new_tokens: int = 64
    burst_share: float = 0.05
    burst_seconds: float = 10.0
    failing: int = 500
    restart_seconds: float = 15.0
    seed: int = 1

    @property
    def users(self) -> int:
        """Those of an undisturbed fleet."""
        return self.replicas * self.in_flight


@dataclass(frozen=True, slots=True)
class Ask:
    """What one request asks for: the rank of its adapter, 0 the most frequent; tokens; whether in a burst."""

    adapter: int
    new_tokens: int
    in_burst: bool


def asks(sizes: FleetSizes) -> Iterator[Ask]:
    """Requests without end. The adapter of those in bursts is chosen by the caller."""
    random = np.random.default_rng(sizes.seed)
    weights = 1.0 / np.arange(1, sizes.adapters + 1) ** sizes.exponent
    cumulated = np.cumsum(weights / weights.sum())
    low, high = max(1, sizes.new_tokens // 4), max(2, sizes.new_tokens * 7 // 4)
    while True:
        ranks = np.minimum(np.searchsorted(cumulated, random.random(_BLOCK)), sizes.adapters - 1)
        lengths = random.integers(low, high + 1, _BLOCK)
        bursts = random.random(_BLOCK) < sizes.burst_share
        for rank, length, in_burst in zip(ranks.tolist(), lengths.tolist(), bursts.tolist(), strict=True):
            yield Ask(rank, length, in_burst)
