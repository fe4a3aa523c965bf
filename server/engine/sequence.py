"""A request being computed: its tokens, its slot and its adapter, and the part of it that a step computes. Plain
Python, no torch.

The contract of a step: the scheduler says which tokens of which sequences are computed, and for which of them logits
are needed (``ScheduledTokens``); the runner computes them (``Batch``, ``StepOutput``); the sampler chooses a token at
each place that a sequence goes on from; the engine settles them, one or several a sequence. Several come of *draft
tokens*: whoever proposes them puts them into ``SequenceState.spec_token_ids``, and of what the sampler chooses at their
places all up to the first that differs from its draft counts.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from graftwork.server.engine.kv.prefix_cache import Prefix
from graftwork.server.engine.lora.adapter_cache import CachedAdapter
from graftwork.server.engine.request import Request

if TYPE_CHECKING:
    from graftwork.server.engine.grammars.processor import GrammarProcessor
    from graftwork.server.engine.logits_processors import LogitsProcessor


@dataclass(eq=False, slots=True)
class SequenceState:
    """A request on its way: its tokens so far, how many of them the key-value cache holds, and in which slot.

    Attributes:
        tokens: The prompt and what was generated.
        num_cached: Tokens that the prefix cache had when the request was first admitted.
        arrived_at: When the engine took the request in, by ``time.monotonic``.
        queued_seconds: From then until it was first admitted.
        num_computed: Tokens, from the first on, whose keys and values are in ``slot``.
        overtaken: How often younger sequences were admitted while this one waited for its adapter.
        num_scored: Prompt tokens whose log-probabilities have been sent.
        logits_processors: What its logits go through before a token is chosen, in order.
        awaits_grammar: Its grammar is being compiled: it cannot run yet.
        grammar: What its answer is held to; also the last of ``logits_processors``.
        spec_token_ids: Draft tokens that may follow ``tokens``; the next step verifies as many as there is room for.
    """

    request: Request
    arrival_index: int
    tokens: list[int]
    prefix: Prefix
    rng: random.Random
    num_cached: int | None = None
    arrived_at: float = field(default_factory=time.monotonic)
    queued_seconds: float | None = None
    num_computed: int = 0
    slot: int | None = None
    cached_adapter: CachedAdapter | None = None
    overtaken: int = 0
    output_counts: dict[int, int] = field(default_factory=dict)
    num_scored: int = 0
    logits_processors: tuple[LogitsProcessor, ...] = ()
    awaits_grammar: bool = False
    grammar: GrammarProcessor | None = None
    spec_token_ids: tuple[int, ...] = ()

    @property
    def num_prompt(self) -> int:
        return len(self.request.prompt)

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - len(self.request.prompt)

    @property
    def num_left(self) -> int:
        """Tokens to be computed before it generates a new one."""
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

    def require_slot(self) -> int:
        """The slot of a sequence that runs.

        Raises:
            RuntimeError: It has none.
        """
        if self.slot is None:
            raise RuntimeError(f"{self.request.id} runs without a slot")
        return self.slot


@dataclass(frozen=True, slots=True)
class ScheduledTokens:
    """Tokens of one sequence to be computed in this step.

    Attributes:
        sequence: Whose they are.
        start: The place in the sequence of the first.
        count: How many, ``spec_token_ids`` included.
        logits: Which of them need logits, as places in the sequence: the last ones, or none.
        spec_token_ids: Draft tokens, computed behind the sequence's newest token.
    """

    sequence: SequenceState
    start: int
    count: int
    logits: range
    spec_token_ids: tuple[int, ...] = ()

    @property
    def stop(self) -> int:
        return self.start + self.count

    @property
    def needs_sample(self) -> bool:
        """The newest token is computed: its logits choose the next one."""
        return self.start + self.count - len(self.spec_token_ids) == len(self.sequence.tokens)

    @property
    def num_samples(self) -> int:
        """At how many places a token is chosen: the newest token's and those of the drafts, whose logits come last."""
        return 1 + len(self.spec_token_ids) if self.needs_sample else 0

    @property
    def token_ids(self) -> list[int]:
        tokens = self.sequence.tokens[self.start : self.start + self.count]
        return [*tokens, *self.spec_token_ids] if self.spec_token_ids else tokens
