"""Tokens from logits in torch: the obvious way, on any device. Shapes: N rows, V vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from graftwork.server.engine.request import SamplingParams


def sample_tokens(logits: Tensor, params: Sequence[SamplingParams], uniform: Sequence[float]) -> list[int]:
    """``SampleTokens`` of ``server/engine/sampler.py``."""
    best, tokens = logits.max(-1)
    if drawn := [i for i, row in enumerate(params) if row.temperature > 0]:
        index = torch.tensor(drawn, device=logits.device)
        tokens[index] = _draw(logits[index], [params[i] for i in drawn], [uniform[i] for i in drawn])
    return torch.where(torch.isfinite(best), tokens, -1).tolist()


def _draw(logits: Tensor, params: Sequence[SamplingParams], uniform: Sequence[float]) -> Tensor:
    """One token of each row of logits [N, V]. → [N]"""
    device = logits.device
    temperature = torch.tensor([[row.temperature] for row in params], device=device)
    # The best token is moved to 0 first, so that no temperature, however small, can overflow.
    weights = ((logits - logits.amax(-1, keepdim=True)) / temperature).exp()
    if filtered := [i for i, row in enumerate(params) if row.top_k or row.top_p < 1 or row.min_p]:
        index = torch.tensor(filtered, device=device)
        kept = _kept(weights[index], [params[i] for i in filtered])
        weights[index] = torch.where(kept, weights[index], 0.0)
    mass = weights.cumsum(-1, dtype=torch.float64)
    total = mass[:, -1:]
    # A number next to 1 must not round up to all of the mass, behind the last token that weighs anything.
    target = torch.minimum(
        torch.tensor(uniform, dtype=torch.float64, device=device)[:, None] * total, total.nextafter(total.new_zeros(()))
    )
    return torch.searchsorted(mass, target, right=True).clamp_(max=logits.shape[1] - 1)[:, 0]


def _kept(weights: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Which tokens min_p, then top_k, then top_p leave. weights [N, V], the largest of a row 1 → bool [N, V]"""
    device, vocabulary = weights.device, weights.shape[1]
    min_p = torch.tensor([[row.min_p] for row in params], device=device)
    top_k = torch.tensor([[row.top_k or vocabulary] for row in params], device=device)
    top_p = torch.tensor([[row.top_p] for row in params], dtype=torch.float64, device=device)
    ordered, ids = weights.sort(dim=-1, descending=True, stable=True)
    inside = (ordered >= min_p) & (torch.arange(vocabulary, device=device) < top_k)
    ordered = torch.where(inside, ordered, 0.0).double()
    mass = ordered.cumsum(-1)
    inside &= (mass - ordered < top_p * mass[:, -1:]) & (ordered > 0)  # while the mass before it is below top_p
    return torch.zeros_like(inside).scatter_(1, ids, inside)
