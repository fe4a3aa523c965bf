"""Runs a model once and records which modules read which tensors, so that no architecture needs to be known by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from graftwork.adapters.errors import ConfigurationError
from graftwork.server.engine.model.attention import AttentionTraits, TracingAttention

#: A prime, so that it is not mistaken for any other size of a tensor.
NUM_TRACE_TOKENS = 37


@dataclass(frozen=True, kw_only=True)
class ModelTrace:
    """What one run of the untouched model showed.

    Attributes:
        sibling_groups: Names of linear layers that read the same tensor, in the order in which they read it.
        token_wise: The other leaf modules with parameters, with the dimension of their input that counts tokens.
        attention: The traits of each layer.
        logits: [NUM_TRACE_TOKENS, V] float32, of the token ids 0, 1, 2, …
    """

    sibling_groups: list[list[str]]
    token_wise: dict[str, int]
    attention: tuple[AttentionTraits, ...]
    logits: Tensor

    @property
    def kv_sizes(self) -> tuple[tuple[int, int], ...]:
        """Each layer's (kv_heads, head_dim)."""
        return tuple((layer.num_kv_heads, layer.head_dim) for layer in self.attention)


def trace_model(model: nn.Module) -> ModelTrace:
    """Run the model once and record which modules read which tensors.

    Raises:
        ConfigurationError: The architecture cannot be served; the message says why.
    """
    groups: list[list[str]] = []
    token_wise: dict[str, int] = {}
    newest: tuple[Tensor, list[str]] | None = None

    def watch_linear(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            nonlocal newest
            x = inputs[0]
            if newest is not None and newest[0] is x:
                newest[1].append(name)
                return
            groups.append([name])
            newest = (x, groups[-1])

        return hook

    def watch_leaf(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            axes = [axis for axis, size in enumerate(inputs[0].shape) if size == NUM_TRACE_TOKENS] if inputs else []
            if len(axes) == 1:
                token_wise[name] = axes[0]

        return hook

    named = {name: module for name, module in model.named_modules() if name}
    linear = {name for name, module in named.items() if isinstance(module, nn.Linear)}
    handles = []
    for name, module in named.items():
        if name in linear:
            handles.append(module.register_forward_pre_hook(watch_linear(name)))
        elif _is_leaf_with_parameters(module):
            handles.append(module.register_forward_pre_hook(watch_leaf(name)))
    attention = TracingAttention()
    try:
        with torch.inference_mode():
            ids = torch.tensor([list(range(NUM_TRACE_TOKENS))], device=next(model.parameters()).device)
            logits: Tensor = model(input_ids=ids, use_cache=False, graft_attention=attention).logits[0].float()
    finally:
        for handle in handles:
            handle.remove()
    seen = [name for group in groups for name in group]
    if len(seen) != len(set(seen)) or set(seen) != linear:
        odd = sorted(linear ^ set(seen) or {name for name in seen if seen.count(name) > 1})
        raise ConfigurationError(
            f"{type(model).__name__} does not run {odd[0]} exactly once per token; it cannot be served."
        )
    if not attention.layers or sorted(attention.layers) != list(range(len(attention.layers))):
        raise ConfigurationError(f"{type(model).__name__} has layers without plain attention; it cannot be served.")
    return ModelTrace(
        sibling_groups=groups,
        token_wise=token_wise,
        attention=tuple(attention.layers[i] for i in range(len(attention.layers))),
        logits=logits,
    )


def _is_leaf_with_parameters(module: nn.Module) -> bool:
    return not list(module.children()) and bool(list(module.parameters(recurse=False)))
