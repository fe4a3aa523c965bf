"""A request being computed: its tokens, its slot and its adapter, and the part of it that a step computes. Plain
Python, no torch.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from graftwork.server.engine.kv.prefix_cache import Prefix
from graftwork.server.engine.lora.adapter_cache import CachedAdapter
from graftwork.server.engine.request import Request


@dataclass(eq=False, slots=True)
class SequenceState:
    """A request on its way: what was said so far, how much of it the cache holds, and where.

    ``num_cached`` counts tokens that the prefix cache had when it was first admitted, at ``admitted_at``;
    ``num_scored`` prompt tokens whose log-probabilities have been told.
    """

    request: Request
    arrival_index: int
    tokens: list[int]
    prefix: Prefix
    rng: random.Random
    num_cached: int | None = None
    admitted_at: float | None = None
    num_computed: int = 0
    slot: int | None = None
    cached_adapter: CachedAdapter | None = None
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
    def num_left(self) -> int:
        """Tokens to be computed before it says something new."""
        return len(self.tokens) - self.num_computed

    @property
    def num_reusable(self) -> int:
        """How many tokens need not be computed if they have been: not the last, nor any whose logits are asked for."""
        if self.request.sampling.prompt_logprobs is None or self.num_scored >= self.num_prompt:
            return len(self.tokens) - 1
        return max(self.num_scored - 1, 0)

    @property
    def decoding(self) -> bool:
        """All but the newest token are in the cache, and there is a newest token of our own."""
        return self.num_computed == len(self.tokens) - 1 and self.num_generated > 0


@dataclass(frozen=True, slots=True)
class ScheduledTokens:
    """``count`` tokens of ``sequence``, from ``start`` on, to be computed in this step."""

    sequence: SequenceState
    start: int
    count: int

    @property
    def needs_sample(self) -> bool:
        """The last known token is computed: its logits choose the next one."""
        return self.start + self.count == len(self.sequence.tokens)
