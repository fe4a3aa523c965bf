"""A sequence: a request being computed, with its tokens, slot and adapter; and the part of it that a step computes.

A step: the scheduler decides which tokens of which sequences are computed, and for which of them logits or hidden
states are needed (``ScheduledTokens``); the runner computes them (``Batch``, ``StepOutput``); the sampler chooses a
token at each position that a sequence continues from; the engine appends them, one or several a sequence. There are
several with *draft tokens*: a proposer puts them into ``SequenceState.spec_token_ids``, and of the tokens chosen at
their positions all up to the first that differs from its draft are accepted.

Plain Python, no torch.
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
    from torch import Tensor

    from graftwork.server.engine.grammars.processor import GrammarProcessor
    from graftwork.server.engine.logits_processors import LogitsProcessor


@dataclass(eq=False, slots=True)
class SequenceState:
    """A request being computed: its tokens so far, how many of them the key-value cache holds, and in which slot.

    Attributes:
        request: What was added to the engine.
        arrival_index: Its number in order of arrival.
        tokens: The prompt and what was generated.
        prefix: Finds these tokens in the prefix cache.
        rng: Its random numbers, for sampling.
        num_cached: Tokens that the prefix cache had when the request was first admitted.
        arrived_at: When the engine took the request in, in seconds of ``time.monotonic``.
        queued_seconds: From then until it was first admitted.
        num_computed: Tokens, from the first on, whose keys and values are in ``slot``.
        slot: Of the key-value cache, while it runs.
        cached_adapter: A reference to its adapter, while it runs.
        num_admitted: How many tokens it had when it was last admitted.
        overtaken: How often younger sequences were admitted while this one waited for its adapter.
        output_counts: How often each generated token occurs.
        num_scored: Prompt tokens whose log-probabilities have been sent.
        num_pooled: Prompt tokens that the pooled vector needs no more: their hidden states are in ``pooled``, or the
            pooling leaves them out.
        pooled: [H] the sum of the hidden states so far, if the prompt is pooled.
        logits_processors: Applied to its logits before a token is chosen, in order.
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
    num_admitted: int = 0
    overtaken: int = 0
    output_counts: dict[int, int] = field(default_factory=dict)
    num_scored: int = 0
    num_pooled: int = 0
    pooled: Tensor | None = None
    logits_processors: tuple[LogitsProcessor, ...] = ()
    awaits_grammar: bool = False
    grammar: GrammarProcessor | None = None
    spec_token_ids: tuple[int, ...] = ()

    @property
    def num_prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt)

    @property
    def num_generated(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def num_left(self) -> int:
        """Tokens to be computed before the next one can be sampled."""
        return len(self.tokens) - self.num_computed

    @property
    def num_held(self) -> int:
        """Tokens that the cache must have room for: these, and the one by which it may grow in a step."""
        return len(self.tokens) + (self.request.sampling.max_tokens > 0)

    @property
    def num_reusable(self) -> int:
        """How many leading tokens may come from the prefix cache, which has keys and values alone.

        Not the last, nor any whose logits or hidden states are requested.
        """
        if self.request.sampling.pooling is not None:
            return self.num_pooled
        if self.request.sampling.prompt_logprobs is None or self.num_scored >= self.num_prompt:
            return len(self.tokens) - 1
        return max(self.num_scored - 1, 0)

    @property
    def decoding(self) -> bool:
        """Whether only its newest token is left to compute, and that one was generated."""
        return self.num_computed == len(self.tokens) - 1 and self.num_generated > 0

    def require_slot(self) -> int:
        """The slot of a running sequence.

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
        sequence: Their sequence.
        start: The position of the first.
        count: How many, ``spec_token_ids`` included.
        logits: Positions whose logits are computed: the last ones, or none.
        hidden: Positions whose hidden states are pooled: the last ones, or none.
        spec_token_ids: Draft tokens, computed behind the sequence's newest token.
    """

    sequence: SequenceState
    start: int
    count: int
    logits: range
    hidden: range = range(0)
    spec_token_ids: tuple[int, ...] = ()

    @property
    def stop(self) -> int:
        """The position after the last."""
        return self.start + self.count

    @property
    def needs_sample(self) -> bool:
        """Whether the newest token is computed, whose logits choose the next one."""
        return self.start + self.count - len(self.spec_token_ids) == len(self.sequence.tokens)

    @property
    def num_samples(self) -> int:
        """At how many positions a token is chosen: the newest token's and those of the drafts.

        Their logits come last.
        """
        return 1 + len(self.spec_token_ids) if self.needs_sample else 0

    @property
    def token_ids(self) -> list[int]:
        """The ids of all ``count`` tokens."""
        tokens = self.sequence.tokens[self.start : self.start + self.count]
        return [*tokens, *self.spec_token_ids] if self.spec_token_ids else tokens
