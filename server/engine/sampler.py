"""Chooses the next token of every row from its logits, in one batched call.

A row's logits go through its request's processors; then the best token is taken, or one is sampled. Each row uses its
own random number from its own seed and its own logits, so its token does not depend on its neighbours.
Shapes: N rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graftwork.server.engine.logits_processors import LogitsRow, apply_processors
from graftwork.server.engine.request import TokenLogprob
from graftwork.server.engine.sequence import SequenceState


@dataclass(frozen=True, slots=True)
class SampledToken:
    """The token chosen for a row, and its log-probability if requested. ``None`` when the logits were not finite."""

    token_id: int | None
    logprob: TokenLogprob | None


def sample(
    logits: Tensor, rows: Sequence[SequenceState], drafts: Mapping[int, tuple[int, ...]] | None = None
) -> list[SampledToken]:
    """Choose the next token of each row.

    Args:
        logits: [N, V], any float dtype.
        rows: The sequence of each row. One with draft tokens has a row for its newest token and one for each draft.
        drafts: For rows of draft tokens: the drafts up to there, which count as the sequence's own tokens.

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
    greedy = adjusted.argmax(-1)
    sampled_rows = [i for i, row in enumerate(rows) if row.request.sampling.temperature > 0]
    tokens = greedy
    if sampled_rows:
        tokens = greedy.clone()
        index = torch.tensor(sampled_rows, device=logits.device)
        sampled_logits = adjusted if len(sampled_rows) == len(rows) else adjusted[index]
        tokens[index] = _sample_rows(sampled_logits, [rows[i] for i in sampled_rows])
    finite = torch.isfinite(logits.sum(-1)).tolist()
    chosen = tokens.tolist()
    wanted = [i for i, row in enumerate(rows) if row.request.sampling.top_logprobs is not None and finite[i]]
    counts = [rows[i].request.sampling.top_logprobs or 0 for i in wanted]
    logprobs = dict(zip(wanted, token_logprobs(logits, wanted, [chosen[i] for i in wanted], counts), strict=True))
    return [
        SampledToken(chosen[i], logprobs.get(i)) if finite[i] else SampledToken(None, None) for i in range(len(rows))
    ]


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


def _sample_rows(logits: Tensor, rows: Sequence[SequenceState]) -> Tensor:
    """Sample each row by inverse CDF at its own uniform number. logits [N, V] → [N]

    Rows with top_p sample from the sorted tokens, the others from all in their order: which branch a row takes must not
    depend on its neighbours, or the same seed would give another token.
    """
    device = logits.device
    uniform = torch.tensor([[row.rng.random()] for row in rows], dtype=torch.float64, device=device)
    temperature = torch.tensor([[row.request.sampling.temperature] for row in rows], device=device)
    # The best token is moved to 0 first, so that no temperature, however small, can overflow.
    probs = torch.softmax((logits - logits.amax(-1, keepdim=True)) / temperature, dim=-1)
    tokens = torch.empty(len(rows), dtype=torch.long, device=device)
    for nucleus in (False, True):
        group = [i for i, row in enumerate(rows) if (row.request.sampling.top_p < 1) is nucleus]
        if not group:
            continue
        index = torch.tensor(group, device=device)
        if nucleus:
            top_p = [[rows[i].request.sampling.top_p] for i in group]
            tokens[index] = _sample_nucleus(probs[index], uniform[index], torch.tensor(top_p, device=device))
        else:
            tokens[index] = _inverse_cdf(probs[index].cumsum(-1, dtype=torch.float64), uniform[index])
    return tokens


def _sample_nucleus(probs: Tensor, uniform: Tensor, top_p: Tensor) -> Tensor:
    """Sample from the smallest set of tokens whose mass reaches top_p. probs [N, V], uniform and top_p [N, 1] → [N]"""
    ordered, ids = probs.sort(dim=-1, descending=True, stable=True)
    mass = ordered.cumsum(-1, dtype=torch.float64)
    inside = (mass - ordered) < top_p  # a token stays while the mass before it is below top_p
    inside[:, 0] = True
    place = _inverse_cdf(torch.where(inside, ordered.double(), 0.0).cumsum(-1), uniform)
    return ids.gather(1, place[:, None])[:, 0]


def _inverse_cdf(mass: Tensor, uniform: Tensor) -> Tensor:
    """The index in the cumulative mass [N, V] at which the fraction ``uniform`` [N, 1] of its total falls. → [N]"""
    place = torch.searchsorted(mass, uniform * mass[:, -1:], right=True)
    return place.clamp_(max=mass.shape[1] - 1)[:, 0]
