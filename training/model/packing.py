"""A batch of rows as one row without padding, in which what all rows begin with stands once.

Rows made by one template begin alike: a system message, the template's own words. With causal attention these tokens
come out the same in every row, so they are computed once, and every row attends to them::

    rows      A A A b b b        packed   A A A b b b c c
              A A A c c .        positions  0 1 2 3 4 5 3 4

The sums are those of padded rows: gradients of what is shared add up by themselves. On a CPU the attention of such
short rows is also quicker as plain products than as torch's flash kernel, whose backward pass is made for long ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from graftwork.training.data.tokens import IGNORED

ATTENTION: Final = "graftwork_packed"
"""What this way is called in a model's configuration."""

SUPPORTED_MODEL_TYPES: Final = frozenset({"llama", "qwen2", "qwen3"})
"""Types of models that know a token's place by its position id alone, and hand on to attention what they are given."""

MAX_ROW_TOKENS: Final = 256
"""Tokens of a row up to which attention is computed as plain products: their scores are kept for the backward pass."""


@dataclass(frozen=True, kw_only=True)
class PackedLayout:
    """Where the rows are.

    Attributes:
        shared: tokens that all rows begin with; they stand first.
        places: (rows, longest) of each row's own tokens; 0 behind its end.
        own: (rows, longest) bool, whether there is a token.
    """

    shared: int
    places: Tensor
    own: Tensor

    @property
    def num_saved_tokens(self) -> int:
        """Tokens that padded rows would have and that stand here once."""
        return self.shared * (len(self.places) - 1)

    def each(self, of_rows: Tensor) -> Tensor:
        """What is said of rows, said of their tokens: (rows,) → (1, tokens); of shared ones 0."""
        lengths = self.own.sum(dim=1)
        return torch.cat((of_rows.new_zeros(self.shared), of_rows.repeat_interleave(lengths)))[None]


def enable_packing(model: PreTrainedModel) -> bool:
    """Let the model take packed rows, if it is one that can, and say whether it does. Other rows go their usual way."""
    config = model.config
    if (
        config.model_type not in SUPPORTED_MODEL_TYPES
        or config._attn_implementation != "sdpa"
        or model.device.type != "cpu"
    ):
        return False
    if getattr(config, "sliding_window", None) or getattr(config, "attention_dropout", 0.0):
        return False
    AttentionInterface.register(ATTENTION, packed_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    model.set_attn_implementation(ATTENTION)
    return bool(config._attn_implementation == ATTENTION)


def pack(rows: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]) -> dict[str, Any] | None:
    """What the model takes for these rows: ``input_ids``, ``labels`` and ``position_ids`` (1, tokens), and ``packing``.

    None if a row is too long for it to be of use. A label says what its own token is, as everywhere; the first own
    token of a row follows another row's last one here, so that it is never learned.
    """
    if max(map(len, rows)) > MAX_ROW_TOKENS:
        return None
    shared = _shared(rows, labels)
    ids, targets, positions = list(rows[0][:shared]), [IGNORED] * shared, list(range(shared))
    longest = max(map(len, rows)) - shared
    places = torch.zeros(len(rows), longest, dtype=torch.long)
    own = torch.zeros(len(rows), longest, dtype=torch.bool)
    for index, (row, learned) in enumerate(zip(rows, labels, strict=True)):
        length = len(row) - shared
        places[index, :length] = torch.arange(len(ids), len(ids) + length)
        own[index, :length] = True
        ids += row[shared:]
        targets += [IGNORED, *learned[shared + 1 :]]
        positions += range(shared, len(row))
    return {
        "input_ids": torch.tensor([ids]),
        "labels": torch.tensor([targets]),
        "position_ids": torch.tensor([positions]),
        "packing": PackedLayout(shared=shared, places=places, own=own),
    }


def _shared(rows: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with: so many that each keeps one of its own before the first that is learned."""
    shared = 0
    for tokens, learned in zip(zip(*rows, strict=False), zip(*labels, strict=False), strict=False):
        if len(set(tokens)) > 1 or any(label != IGNORED for label in learned):
            break
        shared += 1
    # The token behind the shared ones is never learned.
    following = [label[shared] if shared < len(label) else 0 for label in labels]
    return shared if all(label == IGNORED for label in following) else max(shared - 1, 0)


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: PackedLayout | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Transformers' interface: query (1, heads, tokens, dim), key and value (1, kv_heads, tokens, dim) of a packed row;
    the output is (1, tokens, heads, dim). Without ``packing``, as SDPA has it."""
    if packing is None:
        usual: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return usual
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = query[0], key[0], value[0]
    shared, (num_rows, longest) = packing.shared, packing.places.shape
    flat = packing.places.flatten()

    def own(x: Tensor) -> Tensor:
        """(heads, tokens, dim) → (rows, heads, longest, dim)"""
        return x.index_select(1, flat).view(len(x), num_rows, longest, -1).transpose(0, 1)

    def with_shared(x: Tensor) -> Tensor:
        first = x[None, :, :shared].expand(num_rows, -1, -1, -1)
        return torch.cat((first, own(x)), dim=2)

    out = _attend(own(q), with_shared(k), with_shared(v), scale)  # (rows, longest, heads, dim)
    parts = [out[packing.own]]  # row by row, as they stand in the packed one
    if shared:
        parts.insert(0, _attend(q[None, :, :shared], k[None, :, :shared], v[None, :, :shared], scale)[0])
    return torch.cat(parts)[None], None


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Causal: the last query sees all keys.

    q (rows, heads, n, dim), k and v (rows, kv_heads, m, dim) → (rows, n, heads, dim)
    """
    num_rows, heads, n, dim = q.shape
    kv_heads, m = k.shape[1], k.shape[2]
    q = q.reshape(num_rows * kv_heads, -1, dim)  # a kv head's query heads one after the other
    scores = torch.bmm(q, k.reshape(-1, m, dim).transpose(1, 2)).view(num_rows, heads, n, m)
    hidden = torch.ones(n, m, dtype=torch.bool).triu_(m - n + 1)
    probabilities = _Softmax.apply(scores, hidden, scale)  # type: ignore[no-untyped-call]
    out = torch.bmm(probabilities.view(num_rows * kv_heads, -1, m), v.reshape(-1, m, dim))
    return out.view(num_rows, heads, n, dim).transpose(1, 2)


class _Softmax(torch.autograd.Function):
    """``softmax(scale * scores)`` over the last axis in float32, without the places that are ``hidden`` (n, m)."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, hidden: Tensor, scale: float) -> Tensor:
        exact = (scores.float() * scale).masked_fill_(hidden, float("-inf"))
        probabilities = torch.softmax(exact, dim=-1).to(scores.dtype)
        ctx.save_for_backward(probabilities)
        ctx.scale = scale
        return probabilities

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (probabilities,) = ctx.saved_tensors
        p = probabilities.float()
        weighed = p * gradients[0].float()
        grad = weighed.sub_(p * weighed.sum(dim=-1, keepdim=True)).mul_(ctx.scale)
        return grad.to(probabilities.dtype), None, None
