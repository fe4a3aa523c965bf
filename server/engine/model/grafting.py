"""Replaces the modules of a plain causal language model by layers that adapters can attach to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from graftwork.server.engine.lora.bank import LoraBank
from graftwork.server.engine.model.layers import GraftedModule, Grafts, LinearMethod, MergedLinear, MergedLinearMember
from graftwork.server.engine.model.trace import ModelTrace

#: Makes the product of sibling layers.
MakeLinearMethod = Callable[[Sequence[nn.Linear]], LinearMethod]


def graft_onto(model: nn.Module, trial: ModelTrace, bank: LoraBank, hold: MakeLinearMethod) -> Grafts:
    """Replace every module of ``model`` that adapters may touch; ``hold`` takes the linear layers' weights over."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    modules = dict(model.named_modules())
    grafts = Grafts()
    for family in trial.sibling_groups:
        layers = [layer for layer in map(modules.__getitem__, family) if isinstance(layer, nn.Linear)]
        with torch.no_grad():
            product = hold(layers)
        projections = MergedLinear(family, layers, product, bank, is_head=any(layer is head for layer in layers))
        for index, (name, layer) in enumerate(zip(family, layers, strict=True)):
            _replace(model, name, MergedLinearMember(projections, index, layer))
        grafts.merged_linears.append(projections)
    for name, axis in trial.token_wise.items():
        grafted = GraftedModule(name, modules[name], axis, bank)
        _replace(model, name, grafted)
        grafts.modules.append(grafted)
    return grafts


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
