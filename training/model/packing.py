"""Packing of a batch into one row without padding, with the common prefix of all rows computed once.

Rows of one chat template have a common prefix: the system message and the template's own tokens. With causal attention
the hidden states of these tokens are the same in every row, so that they are computed once and every row attends to
them::

    rows      A A A b b b        packed   A A A b b b c c
              A A A c c .        positions  0 1 2 3 4 5 3 4

The result is that of padded rows: autograd sums the gradients of the shared tokens. For short rows on a CPU, attention
as plain matrix products is also faster than torch's flash kernel, whose backward pass is optimised for long rows.
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
"""The name of this attention implementation in a model's configuration."""

SUPPORTED_MODEL_TYPES: Final = frozenset({"llama", "qwen2", "qwen3"})
"""Model types that derive positions from ``position_ids`` only, and pass keyword arguments on to attention."""

MAX_ROW_TOKENS: Final = 256
"""Maximum length of a row for packing: the attention scores of longer ones, kept for the backward pass, are too large.
"""


@dataclass(frozen=True, kw_only=True)
class PackedLayout:
    """The positions of the rows in a packed row.

    Attributes:
        shared: length of the common prefix, which comes first.
        places: index of each row's own tokens in the packed row, [rows, longest]; 0 after the end of a row.
        own: whether there is a token, bool [rows, longest].
    """

    shared: int
    places: Tensor
    own: Tensor

    @property
    def num_saved_tokens(self) -> int:
        """Number of prefix tokens that are not repeated, compared with rows that are not packed."""
        return self.shared * (len(self.places) - 1)

    def each(self, of_rows: Tensor) -> Tensor:
        """Expand a value of each row to its tokens: [rows] → [1, tokens]; 0 for shared tokens."""
        lengths = self.own.sum(dim=1)
        return torch.cat((of_rows.new_zeros(self.shared), of_rows.repeat_interleave(lengths)))[None]


def enable_packing(model: PreTrainedModel) -> bool:
    """Switch a model to attention that accepts packed rows; other inputs are computed as before.

    Returns:
        Whether the model supports it. It does not for other model types, on a GPU, and with a sliding window or
        attention dropout.
    """
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
    """Pack rows into one.

    The first own token of a row has no loss, as the token before it in the packed row belongs to another row.

    Args:
        rows: token ids of each row.
        labels: labels of each row, of the same lengths; ``labels[i]`` belongs to token i, as in transformers.

    Returns:
        The inputs of the model: ``input_ids``, ``labels`` and ``position_ids``, each [1, tokens], and ``packing``. None
        if a row is longer than `MAX_ROW_TOKENS`.
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
    """Return the length of the common prefix, such that each row has an own token before its first learned one."""
    shared = 0
    for tokens, learned in zip(zip(*rows, strict=False), zip(*labels, strict=False), strict=False):
        if len(set(tokens)) > 1 or any(label != IGNORED for label in learned):
            break
        shared += 1
    # The first token after the prefix must not be learned.
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
    """Causal attention within the rows of a packed row, by transformers' attention interface.

    Args:
        module: the attention module.
        query: [1, heads, tokens, dim].
        key: [1, kv_heads, tokens, dim].
        value: [1, kv_heads, tokens, dim].
        attention_mask: used without ``packing`` only.
        packing: the layout of the packed row; without it, torch's SDPA is used.
        scaling: factor on the scores; ``dim ** -0.5`` by default.
        **kwargs: passed on to torch's SDPA.

    Returns:
        The output, [1, tokens, heads, dim], and None in place of attention weights.
    """
    if packing is None:
        output: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return output
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = query[0], key[0], value[0]
    shared, (num_rows, longest) = packing.shared, packing.places.shape
    flat = packing.places.flatten()

    def own(x: Tensor) -> Tensor:
        """[heads, tokens, dim] → [rows, heads, longest, dim]"""
        return x.index_select(1, flat).view(len(x), num_rows, longest, -1).transpose(0, 1)

    def with_shared(x: Tensor) -> Tensor:
        first = x[None, :, :shared].expand(num_rows, -1, -1, -1)
        return torch.cat((first, own(x)), dim=2)

    out = _attend(own(q), with_shared(k), with_shared(v), scale)  # [rows, longest, heads, dim]
    parts = [out[packing.own]]  # row by row, as in the packed row
    if shared:
        parts.insert(0, _attend(q[None, :, :shared], k[None, :, :shared], v[None, :, :shared], scale)[0])
    return torch.cat(parts)[None], None


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Causal attention in which the last query attends to all keys.

    q [rows, heads, n, dim], k and v [rows, kv_heads, m, dim] → [rows, n, heads, dim]
    """
    num_rows, heads, n, dim = q.shape
    kv_heads, m = k.shape[1], k.shape[2]
    q = q.reshape(num_rows * kv_heads, -1, dim)  # the query heads of a kv head are consecutive
    scores = torch.bmm(q, k.reshape(-1, m, dim).transpose(1, 2)).view(num_rows, heads, n, m)
    hidden = torch.ones(n, m, dtype=torch.bool).triu_(m - n + 1)
    probabilities = _Softmax.apply(scores, hidden, scale)  # type: ignore[no-untyped-call]
    out = torch.bmm(probabilities.view(num_rows * kv_heads, -1, m), v.reshape(-1, m, dim))
    return out.view(num_rows, heads, n, dim).transpose(1, 2)


class _Softmax(torch.autograd.Function):
    """``softmax(scale * scores)`` over the last axis in float32, masked where ``hidden`` [n, m] is true."""

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
