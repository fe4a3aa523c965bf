"""The attention that Hugging Face's modules call, and the interface a backend implements for it.

``attend`` is registered with transformers as an attention implementation; the step's ``AttentionBackend`` arrives as a
keyword through the model's forward. Shapes: T tokens, H query heads, K key-value heads, D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from graftwork.adapters.errors import ConfigurationError

#: The name under which transformers finds ``attend``.
IMPLEMENTATION = "graftwork"

#: Extra arguments of attention implementations that change the result and are not implemented here.
_UNKNOWN_EXTRAS = ("s_aux", "position_bias", "cache", "alibi")


def scaled_dot_product(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, softcap: float | None) -> Tensor:
    """softmax(q·kᵀ·scale + mask)·v, with a soft cap on the logits before the mask if there is one.

    Args:
        q: [N, heads, rows, D].
        k: [N, heads, L, D].
        v: [N, heads, L, D].
        mask: Additive, broadcastable to [N, heads, rows, L].
        scale: Of q·k.
        softcap: ``None``: none.

    Returns:
        [N, heads, rows, D].
    """
    if softcap is None:
        if mask.dim() == 4:
            mask = mask.expand(-1, q.shape[1], q.shape[2], -1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    scores = torch.tanh(q @ k.transpose(2, 3) * (scale / softcap)) * softcap + mask
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype) @ v


@dataclass(frozen=True, kw_only=True)
class AttentionTraits:
    """The attention of one layer: head counts, and what its module passes to ``attend``.

    ``scale`` multiplies q·k; ``window`` is how many positions a token sees, itself included; ``softcap`` bounds the
    logits.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int | None
    softcap: float | None


class TracingAttention:
    """Plain causal attention without a cache, for ``trace_model``. Records the traits of each layer."""

    def __init__(self) -> None:
        self.layers: dict[int, AttentionTraits] = {}

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """See ``AttentionBackend.attend``; all T tokens are one sequence.

        Raises:
            ConfigurationError: Keys and values differ in shape.
        """
        if key.shape != value.shape:
            raise ConfigurationError(
                "Keys and values of different sizes (multi-head latent attention) cannot be served yet."
            )
        self.layers[layer] = AttentionTraits(
            num_heads=query.shape[0],
            num_kv_heads=key.shape[0],
            head_dim=key.shape[2],
            scale=scale,
            window=window,
            softcap=softcap,
        )
        groups = query.shape[0] // key.shape[0]
        k, v = key.repeat_interleave(groups, 0)[None], value.repeat_interleave(groups, 0)[None]
        num_tokens = query.shape[1]
        hidden = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=query.device).triu_(1)
        if window is not None:
            hidden |= torch.ones_like(hidden).tril_(-window)
        mask = torch.zeros(hidden.shape, dtype=query.dtype, device=query.device).masked_fill_(hidden, float("-inf"))
        return scaled_dot_product(query[None], k, v, mask, scale, softcap)[0].transpose(0, 1)


class AttentionBackend(Protocol):
    """Computes the attention of each layer in one step; made anew for every step."""

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Write keys and values to the cache, then attend.

        Args:
            layer: Index of the layer.
            query: [H, T, D].
            key: [K, T, D].
            value: [K, T, D].
            scale: Multiplies q·k.
            window: How many positions a token sees, itself included; ``None``: all.
            softcap: Bounds the logits by tanh; ``None``: not at all.

        Returns:
            [T, H, D].
        """
        ...


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    graft_attention: AttentionBackend | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function that HF's modules call.

    Args:
        module: HF's attention module.
        query: [1, H, T, D].
        key: [1, K, T, D].
        value: [1, K, T, D].
        attention_mask: Ignored, like ``dropout``: what a token sees follows from the step.
        scaling: Multiplies q·k; ``None``: 1/√D.
        sliding_window: How many positions a token sees.
        softcap: Bounds the logits by tanh.
        graft_attention: The step's backend.

    Returns:
        [1, T, H, D], and ``None`` for the attention weights.

    Raises:
        ConfigurationError: The module does not pass ``graft_attention`` on, or needs what is not implemented.
    """
    if graft_attention is None:
        raise ConfigurationError(
            f"{type(module).__name__} keeps its keyword arguments from attention: this architecture cannot be served."
        )
    if unknown := [name for name in _UNKNOWN_EXTRAS if kwargs.get(name) is not None]:
        raise ConfigurationError(
            f"{type(module).__name__} uses {', '.join(unknown)} in its attention, which is not supported yet."
        )
    scale = scaling if scaling is not None else float(query.shape[-1]) ** -0.5
    layer: int = module.layer_idx  # type: ignore[assignment]
    out = graft_attention.attend(layer, query[0], key[0], value[0], scale, sliding_window, softcap)
    return out[None], None


AttentionInterface.register(IMPLEMENTATION, attend)
