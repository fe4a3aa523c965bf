"""Logits processors: penalties, a minimum length, and whatever is plugged in.

The processors of a request are chosen once, when it is added (``default_processors``); most requests have none, which
costs nothing here. In each step every processor is called once for all rows that have it. Shapes: N rows, V vocabulary.

A grammar is such a processor, too, the last of its request: see ``grammars/processor.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from graftwork.server.engine.request import Request


@dataclass(frozen=True, slots=True)
class LogitsRow:
    """One row of a step's logits, and the tokens before the one that is chosen from it.

    Attributes:
        index: The row of the logits.
        request: The row's request.
        tokens: The prompt and all that was generated, draft tokens before this row's position included. Not to be
            changed.
        output_counts: How often each generated token occurs.
    """

    index: int
    request: Request
    tokens: Sequence[int]
    output_counts: Mapping[int, int]

    @property
    def num_generated(self) -> int:
        """Generated tokens before this row's position."""
        return len(self.tokens) - len(self.request.prompt)


class LogitsProcessor(Protocol):
    """Changes the logits of some rows before a token is chosen from them.

    One object may serve many requests, or be made for a single one and have a state. A row may be changed only by what
    belongs to that row, so that no answer depends on its neighbours. At least one logit of a row must stay finite. A
    sequence with draft tokens has several rows in a step, in order of position. Drafts may be rejected, so rely on a
    row's ``tokens``, not on how often the processor was called.
    """

    def is_active(self, row: LogitsRow) -> bool:
        """Whether it changes this row. A step whose processors are all inactive copies no logits."""
        ...

    def apply(self, logits: Tensor, rows: Sequence[LogitsRow]) -> None:
        """Change ``logits`` [N, V] float32 in place, at ``rows[i].index`` only; ``rows`` (at least one) are active."""
        ...


class Penalties:
    """OpenAI's frequency and presence penalties, over the generated tokens."""

    def is_active(self, row: LogitsRow) -> bool:
        """Whether anything was generated."""
        return bool(row.output_counts)

    def apply(self, logits: Tensor, rows: Sequence[LogitsRow]) -> None:
        """Subtract count · frequency_penalty + presence_penalty from the logit of each generated token."""
        indices: list[int] = []
        tokens: list[int] = []
        numbers: list[tuple[float, float, float]] = []
        for row in rows:
            sampling = row.request.sampling
            indices += [row.index] * len(row.output_counts)
            tokens += row.output_counts
            numbers += [
                (count, sampling.frequency_penalty, sampling.presence_penalty) for count in row.output_counts.values()
            ]
        counts, frequency, presence = torch.tensor(numbers, dtype=torch.float32, device=logits.device).unbind(1)
        logits[torch.tensor([indices, tokens], device=logits.device).unbind(0)] -= counts * frequency + presence


class RepetitionPenalty:
    """Makes every token of one request's prompt and answer less likely, once.

    Logits above 0 are divided by the penalty, those below multiplied (CTRL, https://arxiv.org/abs/1909.05858), as in
    vLLM and transformers.
    """

    def __init__(self, request: Request) -> None:
        self._prompt = frozenset(request.prompt)
        self._prompt_ids = torch.tensor(sorted(self._prompt))

    def is_active(self, row: LogitsRow) -> bool:
        return True

    def apply(self, logits: Tensor, rows: Sequence[LogitsRow]) -> None:
        for row in rows:
            new = [token for token in row.output_counts if token not in self._prompt]
            tokens = torch.cat((self._prompt_ids, torch.tensor(new, dtype=torch.int64))).to(logits.device)
            seen, penalty = logits[row.index, tokens], row.request.sampling.repetition_penalty
            logits[row.index, tokens] = torch.where(seen > 0, seen / penalty, seen * penalty)


class LogitBias:
    """OpenAI's ``logit_bias``: numbers added to the logits of some tokens. For one request."""

    def __init__(self, request: Request) -> None:
        bias = request.sampling.logit_bias
        self._tokens = torch.tensor(list(bias))
        self._values = torch.tensor(list(bias.values()), dtype=torch.float32)

    def is_active(self, row: LogitsRow) -> bool:
        return True

    def apply(self, logits: Tensor, rows: Sequence[LogitsRow]) -> None:
        tokens, values = self._tokens.to(logits.device), self._values.to(logits.device)
        for row in rows:
            logits[row.index, tokens] += values


class MinTokens:
    """Forbids stop tokens until ``min_tokens`` were generated."""

    def is_active(self, row: LogitsRow) -> bool:
        """Whether fewer were generated."""
        return row.num_generated < row.request.sampling.min_tokens

    def apply(self, logits: Tensor, rows: Sequence[LogitsRow]) -> None:
        """Set the logits of the request's stop tokens to -inf."""
        places = [(row.index, token) for row in rows for token in row.request.sampling.stop_token_ids]
        logits[torch.tensor(places, device=logits.device).unbind(1)] = float("-inf")


PENALTIES = Penalties()
MIN_TOKENS = MinTokens()


def default_processors(request: Request) -> tuple[LogitsProcessor, ...]:
    """The processors that a request's sampling parameters need, in the order in which they are applied."""
    sampling = request.sampling
    processors: list[LogitsProcessor] = []
    if sampling.logit_bias:
        processors.append(LogitBias(request))
    if sampling.repetition_penalty != 1:
        processors.append(RepetitionPenalty(request))
    if sampling.frequency_penalty or sampling.presence_penalty:
        processors.append(PENALTIES)
    if sampling.min_tokens and sampling.stop_token_ids:
        processors.append(MIN_TOKENS)
    return tuple(processors)


def apply_processors(logits: Tensor, chains: Sequence[tuple[LogitsRow, Sequence[LogitsProcessor]]]) -> Tensor:
    """Apply each row's processors to its logits.

    Args:
        logits: [N, V] float32, not changed.
        chains: The rows that have processors, and these, in order.

    Returns:
        A changed copy, [N, V]; ``logits`` themselves when no processor is active.
    """
    adjusted = logits
    for place in range(max((len(chain) for _, chain in chains), default=0)):
        groups: dict[int, tuple[LogitsProcessor, list[LogitsRow]]] = {}
        for row, chain in chains:
            if place < len(chain) and chain[place].is_active(row):
                groups.setdefault(id(chain[place]), (chain[place], []))[1].append(row)
        for processor, rows in groups.values():
            if adjusted is logits:
                adjusted = logits.clone()
            processor.apply(adjusted, rows)
    return adjusted
