"""Replaces the modules of a plain causal language model by layers that adapters can attach to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from graftwork.server.engine.lora.bank import LoraBank
from graftwork.server.engine.model.layers import GraftedModule, Grafts, LinearMethod, MergedLinear, MergedLinearMember
from graftwork.server.engine.model.trace import ModelTrace

#: Makes the ``LinearMethod`` of sibling layers.
MakeLinearMethod = Callable[[Sequence[nn.Linear]], LinearMethod]


def graft_onto(model: nn.Module, trace: ModelTrace, bank: LoraBank, make_linear: MakeLinearMethod) -> Grafts:
    """Replace every module of ``model`` that adapters may touch.

    Args:
        model: HF's model; changed in place.
        trace: Of this model.
        bank: Holds the adapters' tables and the step's plan.
        make_linear: Makes the ``LinearMethod`` of sibling linear layers, and takes over their weights.

    Returns:
        The new layers.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    modules = dict(model.named_modules())
    grafts = Grafts()
    for names in trace.sibling_groups:
        layers = [layer for layer in map(modules.__getitem__, names) if isinstance(layer, nn.Linear)]
        with torch.no_grad():
            linear = make_linear(layers)
        merged = MergedLinear(names, layers, linear, bank, is_head=any(layer is head for layer in layers))
        for index, (name, layer) in enumerate(zip(names, layers, strict=True)):
            _replace(model, name, MergedLinearMember(merged, index, layer))
        grafts.merged_linears.append(merged)
    for name, axis in trace.token_wise.items():
        grafted = GraftedModule(name, modules[name], axis, bank)
        _replace(model, name, grafted)
        grafts.modules.append(grafted)
    return grafts


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
