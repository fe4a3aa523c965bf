"""Chooses the next token of every row from its logits, in one batched call.

A row's logits go through its request's processors; then a backend's ``SampleTokens`` takes the best token or draws one.
Each row draws with its own random number from its own seed and its own logits, so what it gets does not depend on its
neighbours. Shapes: N rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from graftwork.server.engine.logits_processors import LogitsRow, apply_processors
from graftwork.server.engine.request import SamplingParams, TokenLogprob
from graftwork.server.engine.sequence import SequenceState


@dataclass(frozen=True, slots=True)
class SampledToken:
    """The token chosen for a row, and its log-probability if requested. ``None`` when the logits were not finite."""

    token_id: int | None
    logprob: TokenLogprob | None


class SampleTokens(Protocol):
    """A backend's choice of tokens. ``backends/torch/sampler.py`` is the obvious one; others are tested against it."""

    def __call__(self, logits: Tensor, params: Sequence[SamplingParams], uniform: Sequence[float], /) -> list[int]:
        """One token of each row, chosen by what the row holds alone.

        Where the temperature is 0 it is the first of the largest. Else tokens weigh e^(logit / temperature); of these
        ``min_p``, then ``top_k``, then ``top_p`` leave some (the lower id where weights are equal), and the token is
        the one at which the running sum of weights, in the order of ids, exceeds ``uniform`` of all.

        Args:
            logits: [N, V] float32. Tokens at -inf are never chosen.
            params: How to choose; temperature, top_k, top_p and min_p are read.
            uniform: A number in [0, 1) for each row; unused where the temperature is 0.

        Returns:
            Token ids; -1 for a row with a NaN, with +inf, or with nothing but -inf.
        """
        ...


def sample(
    logits: Tensor,
    rows: Sequence[SequenceState],
    sample_tokens: SampleTokens,
    drafts: Mapping[int, tuple[int, ...]] | None = None,
) -> list[SampledToken]:
    """Choose the next token of each row.

    Args:
        logits: [N, V], any float dtype.
        rows: Whose they are. A sequence with draft tokens has a row for its newest token and one for each draft.
        sample_tokens: Chooses, once the logits were processed.
        drafts: For rows of draft tokens: the drafts up to there, which the row takes for its sequence's own tokens.

    Returns:
        One token for each row. A sequence's random numbers are used in the order of its rows.
    """
    logits = logits.float()
    adjusted = logits
    if processed := [i for i, row in enumerate(rows) if row.logits_processors]:
        adjusted = apply_processors(
            logits,
            [
                (_logits_row(i, rows[i], drafts.get(i, ()) if drafts else ()), rows[i].logits_processors)
                for i in processed
            ],
        )
    params = [row.request.sampling for row in rows]
    uniform = [row.rng.random() if row.request.sampling.temperature > 0 else 0.0 for row in rows]
    chosen = sample_tokens(adjusted, params, uniform)
    wanted = [i for i, token in enumerate(chosen) if token >= 0 and params[i].top_logprobs is not None]
    counts = [params[i].top_logprobs or 0 for i in wanted]
    logprobs = dict(zip(wanted, token_logprobs(logits, wanted, [chosen[i] for i in wanted], counts), strict=True))
    return [SampledToken(token if token >= 0 else None, logprobs.get(i)) for i, token in enumerate(chosen)]


def accept(sampled: Sequence[SampledToken], drafts: Sequence[int]) -> Sequence[SampledToken]:
    """Accept draft tokens up to the first that differs from the sampled one.

    Args:
        sampled: One token more than ``drafts``: ``sampled[i]`` was chosen as if drafts[:i] were the sequence's tokens.
        drafts: Proposed tokens.

    Returns:
        The sequence's new tokens: one at least; all of ``sampled`` when every draft was right.
    """
    for index, draft in enumerate(drafts):
        if sampled[index].token_id != draft:
            return sampled[: index + 1]
    return sampled


def token_logprobs(
    logits: Tensor, rows: Sequence[int], tokens: Sequence[int], num_top: Sequence[int]
) -> list[TokenLogprob]:
    """Log-probabilities of given tokens.

    Args:
        logits: [N, V].
        rows: Rows of ``logits``.
        tokens: For each of ``rows`` a token id.
        num_top: For each of ``rows``, of how many most likely tokens to add the log-probabilities.

    Returns:
        One for each of ``rows``.
    """
    if not rows:
        return []
    logits = logits if len(rows) == len(logits) else logits[torch.tensor(list(rows), device=logits.device)]
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    own = logprobs.gather(1, torch.tensor(list(tokens), device=logits.device)[:, None])[:, 0].tolist()
    most = max(num_top)
    if most == 0:
        return [TokenLogprob(token, value) for token, value in zip(tokens, own, strict=True)]
    best = logprobs.topk(most, dim=-1)
    values, ids = best.values.tolist(), best.indices.tolist()
    return [
        TokenLogprob(token, own[i], tuple(zip(ids[i][:k], values[i][:k], strict=True)))
        for i, (token, k) in enumerate(zip(tokens, num_top, strict=True))
    ]


def _logits_row(index: int, sequence: SequenceState, drafts: tuple[int, ...]) -> LogitsRow:
    if not drafts:
        return LogitsRow(index, sequence.request, sequence.tokens, sequence.output_counts)
    counts = dict(sequence.output_counts)
    for token in drafts:
        counts[token] = counts.get(token, 0) + 1
    return LogitsRow(index, sequence.request, [*sequence.tokens, *drafts], counts)
