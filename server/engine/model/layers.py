"""The layers that adapters attach to: merged linear layers, and modules that an adapter may add to or replace.

Linear layers that read the same tensor (q, k, v; gate, up) are one ``MergedLinear``: one GEMM over stacked weights, one
LoRA table. Embeddings and norms are wrapped, so that an adapter may add to them or replace them (PEFT's
modules_to_save).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graftwork.adapters.errors import InvalidAdapter
from graftwork.server.engine.lora.bank import LoraBank
from graftwork.server.engine.lora.host_adapter import EmbeddingGraft, HostAdapter, LinearGraft
from graftwork.server.engine.lora.packed import LinearExtras, Packed, PackedAdapter, PackedMergedLinear, PackedModule
from graftwork.server.engine.lora.plan import AdapterRun, LoraPlan


class LinearMethod(Protocol):
    """W·x of sibling linear layers plus B·A·x of each row's adapter, computed together where that is faster."""

    def apply(self, x: Tensor, plan: LoraPlan | None) -> Tensor:
        """W·x plus the adapters of ``plan``, without biases: x [T, in] → [T, out of all siblings]."""

    def pack(self, grafts: Mapping[int, LinearGraft]) -> Packed:
        """Lay out an adapter's grafts (at least one), by member, as ``write`` copies them. Called in any thread."""

    def write(self, pages: Sequence[int], packed: Any | None) -> None:
        """Copy what ``pack`` returned to an adapter's pages; ``None``: the adapter does not touch these layers.

        Members that the adapter does not touch must act as zero afterwards.
        """

    def dense(self) -> Tensor:
        """The weight as it acts, [out, in] float32; DoRA's norms are computed from it."""

    @property
    def num_bytes(self) -> int:
        """Size of the weight, without adapters."""


class MergedLinear:
    """Sibling linear layers as one: y = W·x, plus each row's adapter.

    Args:
        names: Module names of the members, in the order in which they read their input.
        layers: The members; their weights are in ``linear`` already.
        linear: Computes W·x and the adapters.
        bank: Holds the step's plan.
        is_head: The layer is the head, whose rows are those of ``bank.head_plan``.
    """

    def __init__(
        self, names: Sequence[str], layers: Sequence[nn.Linear], linear: LinearMethod, bank: LoraBank, *, is_head: bool
    ) -> None:
        self.names = list(names)
        self.linear = linear
        self.is_head = is_head
        self.bank = bank
        self.slices = columns_of(layers)
        self.bias = stacked_bias(layers, bank.device)
        self.extras: dict[str, dict[int, LinearExtras]] = {}
        self._input: Tensor | None = None
        self._output: Tensor | None = None

    def member(self, index: int, x: Tensor) -> Tensor:
        """The output of member ``index`` for x [..., in]. The first member called computes all of them."""
        if self._input is not x or self._output is None:
            self._output = self._compute(x.reshape(-1, x.shape[-1])).to(x.dtype)
            self._input = x
        out = self._output[:, self.slices[index]].reshape(*x.shape[:-1], -1)
        if index == len(self.slices) - 1:
            self._input = self._output = None
        return out

    def _compute(self, x: Tensor) -> Tensor:
        plan = self.bank.head_plan if self.is_head else self.bank.plan
        y = self.linear.apply(x, plan)
        if plan is None:
            return y if self.bias is None else y.add_(self.bias)
        special = [run for run in plan.runs if run.digest in self.extras]
        for run in special:
            self._scale_columns(run, y)
        if self.bias is not None:
            y += self.bias
        for run in special:
            self._finish(run, x, y)
        return y

    def _scale_columns(self, run: AdapterRun, y: Tensor) -> None:
        for index, extras in self.extras[run.digest].items():
            if extras.column_scale is not None:
                y[run.start : run.stop, self.slices[index]] *= extras.column_scale

    def _finish(self, run: AdapterRun, x: Tensor, y: Tensor) -> None:
        rows = slice(run.start, run.stop)
        for index, extras in self.extras[run.digest].items():
            if extras.bias is not None:
                y[rows, self.slices[index]] += extras.bias
            if extras.replacement is not None:
                weight, bias = extras.replacement
                y[rows, self.slices[index]] = F.linear(x[rows].to(weight.dtype), weight, bias).to(y.dtype)

    # -- adapters ------------------------------------------------------------------------------------------------
    def pack(self, adapter: HostAdapter) -> PackedMergedLinear | None:
        """An adapter's part in these layers, or ``None`` if it does not touch them. Called in any thread."""
        grafts = {i: adapter.linears[name] for i, name in enumerate(self.names) if name in adapter.linears}
        extras: dict[int, LinearExtras] = {}
        for index, name in enumerate(self.names):
            extra = LinearExtras()
            if (graft := grafts.get(index)) is not None:
                extra.bias = None if graft.bias is None else self._place(graft.bias)
                if graft.magnitude is not None:
                    delta = torch.einsum("pri,pro->oi", graft.a.float(), graft.b.float())
                    norm = (self.linear.dense()[self.slices[index]] + delta.to(self.bank.device)).norm(dim=1)
                    extra.column_scale = self._place(graft.magnitude.to(norm.device) / norm)
            if (own := adapter.replaced.get(name)) is not None:
                bias = self._place(own["bias"]) if "bias" in own else self._own_bias(index)
                extra.replacement = (self._place(own["weight"]), bias)
            if extra != LinearExtras():
                extras[index] = extra
        if not grafts and not extras:
            return None
        return PackedMergedLinear(self.linear.pack(grafts) if grafts else None, extras)

    def set_lora(self, digest: str, packed: PackedMergedLinear | None, pages: Sequence[int]) -> None:
        """Copy an adapter's part to its pages."""
        self.linear.write(pages, packed.grafts if packed is not None else None)
        if packed is not None and packed.extras:
            self.extras[digest] = packed.extras

    def reset_lora(self, digest: str) -> None:
        """Forget an adapter; its pages are overwritten by the next one."""
        self.extras.pop(digest, None)

    def _own_bias(self, index: int) -> Tensor | None:
        return None if self.bias is None else self.bias[self.slices[index]].to(self.bank.dtype)

    def _place(self, tensor: Tensor) -> Tensor:
        return tensor.to(device=self.bank.device, dtype=self.bank.dtype)


class MergedLinearMember(nn.Module):
    """The module in a linear layer's place: its part of a ``MergedLinear``."""

    def __init__(self, merged: MergedLinear, index: int, layer: nn.Linear) -> None:
        super().__init__()
        self.merged = merged
        self.index = index
        self.in_features = layer.in_features
        self.out_features = layer.out_features

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] → [..., out], with the adapters of the step."""
        return self.merged.member(self.index, x)


class GraftedModule(nn.Module):
    """A module that computes each token by itself (an embedding, a norm), which adapters may add to or replace.

    ``axis`` is the dimension of its input that counts tokens.
    """

    def __init__(self, name: str, module: nn.Module, axis: int, bank: LoraBank) -> None:
        super().__init__()
        self.name = name
        self.axis = axis
        self.module = module
        self.bank = bank
        self.embeddings: dict[str, EmbeddingGraft] = {}
        self.replacements: dict[str, nn.Module] = {}

    def forward(self, x: Tensor) -> Tensor:
        """The module's output, with the adapters of the step."""
        y: Tensor = self.module(x)
        plan: LoraPlan | None = self.bank.plan
        if plan is None or not (self.embeddings or self.replacements):
            return y
        for run in plan.runs:
            own, graft = self.replacements.get(run.digest), self.embeddings.get(run.digest)
            if own is None and graft is None:
                continue
            x_rows, y_rows = (t.narrow(self.axis, run.start, run.stop - run.start) for t in (x, y))
            if own is not None:
                y_rows.copy_(own(x_rows))
            if graft is not None:
                y_rows += (F.embedding(x_rows, graft.a) @ graft.b).to(y.dtype)
        return y

    def pack(self, adapter: HostAdapter) -> PackedModule | None:
        """An adapter's part in this module, or ``None`` if it does not touch it. Called in any thread."""
        graft, parameters = adapter.embeddings.get(self.name), adapter.replaced.get(self.name)
        if graft is None and parameters is None:
            return None
        if graft is not None:
            graft = EmbeddingGraft(a=graft.a.to(self.bank.device), b=graft.b.to(self.bank.device))
        return PackedModule(graft, None if parameters is None else _with_parameters(self.module, parameters))

    def set_lora(self, digest: str, packed: PackedModule | None, pages: Sequence[int]) -> None:
        """Use an adapter's part from now on; ``pages`` play no part here."""
        if packed is not None and packed.embedding is not None:
            self.embeddings[digest] = packed.embedding
        if packed is not None and packed.replacement is not None:
            self.replacements[digest] = packed.replacement

    def reset_lora(self, digest: str) -> None:
        """Forget an adapter."""
        self.embeddings.pop(digest, None)
        self.replacements.pop(digest, None)


@dataclass(slots=True)
class Grafts:
    """All layers of one model that adapters attach to.

    Attributes:
        merged_linears: Its linear layers.
        modules: Its other modules.
        special: Digests of adapters on the device that do more than to add B·A to linear layers.
    """

    merged_linears: list[MergedLinear] = field(default_factory=list)
    modules: list[GraftedModule] = field(default_factory=list)
    special: set[str] = field(default_factory=set)

    def pack(self, adapter: HostAdapter) -> PackedAdapter:
        """Pack an adapter for every layer: the expensive part of loading, which any thread may do beside the steps.

        Raises:
            InvalidAdapter: The adapter touches a module that cannot be grafted.
        """
        linears = {name for p in self.merged_linears for name in p.names}
        modules = {m.name for m in self.modules}
        names = frozenset({*adapter.linears, *adapter.embeddings, *adapter.replaced})
        for name in names - linears - modules:
            raise InvalidAdapter(
                f"The adapter touches {name!r}, which this server cannot graft onto. Train it without that module."
            )
        return PackedAdapter(
            digest=adapter.digest,
            num_pages=adapter.num_pages,
            names=names,
            is_special=adapter.is_special,
            parts=tuple(layer.pack(adapter) for layer in self._layers()),
        )

    def set_lora(self, adapter: PackedAdapter, pages: Sequence[int]) -> None:
        """Copy a packed adapter to its pages in every layer."""
        for layer, part in zip(self._layers(), adapter.parts, strict=True):
            layer.set_lora(adapter.digest, part, pages)
        if adapter.is_special:
            self.special.add(adapter.digest)

    def reset_lora(self, digest: str) -> None:
        """Forget an adapter in every layer. Unknown digests are ignored."""
        for layer in self._layers():
            layer.reset_lora(digest)
        self.special.discard(digest)

    def _layers(self) -> list[MergedLinear | GraftedModule]:
        return [*self.merged_linears, *self.modules]


def columns_of(layers: Sequence[nn.Linear]) -> list[slice]:
    """Each layer's columns among the outputs of all."""
    ends = itertools.accumulate(layer.out_features for layer in layers)
    return [slice(end - layer.out_features, end) for end, layer in zip(ends, layers, strict=True)]


def stacked_bias(layers: Sequence[nn.Linear], device: torch.device) -> Tensor | None:
    """The biases of all layers [out of all], zeros for a layer without; ``None`` if no layer has one."""
    if all(layer.bias is None for layer in layers):
        return None
    parts = [
        torch.zeros(layer.out_features, dtype=layer.weight.dtype) if layer.bias is None else layer.bias.detach()
        for layer in layers
    ]
    return torch.cat(parts).to(device)


def _with_parameters(module: nn.Module, parameters: Mapping[str, Tensor]) -> nn.Module:
    """A shallow copy of ``module`` with its own parameters."""
    own = copy.copy(module)
    own._parameters = dict(module._parameters)
    for name, tensor in parameters.items():
        old = module._parameters[name]
        own._parameters[name] = nn.Parameter(tensor.to(old) if old is not None else tensor, requires_grad=False)
    return own
