"""The layers that adapters attach to: merged linear layers, and modules that an adapter may add to or replace.

Linear layers that read the same tensor (q, k, v; gate, up) are one ``MergedLinear``: one GEMM over stacked weights, one
LoRA table. Embeddings and norms are wrapped so that an adapter may add to them or bring its own (PEFT's
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
    """W·x of sibling linear layers, plus B·A·x of each row's adapter: the two are computed together where that pays."""

    def apply(self, x: Tensor, plan: LoraPlan | None) -> Tensor:
        """x [T, in] → [T, out of all siblings]."""

    def pack(self, grafts: Mapping[int, LinearGraft]) -> Packed:
        """An adapter's grafts on the members (at least one) as ``write`` wants them; called beside the steps."""

    def write(self, pages: Sequence[int], packed: Any | None) -> None:
        """Copy what ``pack`` made to an adapter's pages; what the adapter does not touch is zero there."""

    def dense(self) -> Tensor:
        """The weight as it acts, [out, in] float32: what DoRA's norms are taken of."""

    @property
    def num_bytes(self) -> int:
        """What the weight takes, without adapters."""


class MergedLinear:
    """Sibling linear layers as one: y = W·x, plus what each row's adapter adds."""

    def __init__(
        self, names: Sequence[str], layers: Sequence[nn.Linear], product: LinearMethod, bank: LoraBank, *, is_head: bool
    ) -> None:
        self.names = list(names)
        self.linear = product
        self.is_head = is_head
        self.bank = bank
        self.slices = columns_of(layers)
        self.bias = stacked_bias(layers, bank.device)
        self.extras: dict[str, dict[int, LinearExtras]] = {}
        self._input: Tensor | None = None
        self._output: Tensor | None = None

    def member(self, index: int, x: Tensor) -> Tensor:
        """Member ``index``'s output for x [..., in]. The first member asked computes for all."""
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

    # -- adapters come and go ------------------------------------------------------------------------------------
    def pack(self, adapter: HostAdapter) -> PackedMergedLinear | None:
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
        self.linear.write(pages, packed.grafts if packed is not None else None)
        if packed is not None and packed.extras:
            self.extras[digest] = packed.extras

    def reset_lora(self, digest: str) -> None:
        self.extras.pop(digest, None)

    def _own_bias(self, index: int) -> Tensor | None:
        return None if self.bias is None else self.bias[self.slices[index]].to(self.bank.dtype)

    def _place(self, tensor: Tensor) -> Tensor:
        return tensor.to(device=self.bank.device, dtype=self.bank.dtype)


class MergedLinearMember(nn.Module):
    """Stands where a linear layer stood."""

    def __init__(self, projections: MergedLinear, index: int, layer: nn.Linear) -> None:
        super().__init__()
        self.merged = projections
        self.index = index
        self.in_features = layer.in_features
        self.out_features = layer.out_features

    def forward(self, x: Tensor) -> Tensor:
        return self.merged.member(self.index, x)


class GraftedModule(nn.Module):
    """A module that treats each token by itself (an embedding, a norm), which adapters may add to or replace.

    ``axis`` is where its input counts tokens.
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
        graft, parameters = adapter.embeddings.get(self.name), adapter.replaced.get(self.name)
        if graft is None and parameters is None:
            return None
        if graft is not None:
            graft = EmbeddingGraft(a=graft.a.to(self.bank.device), b=graft.b.to(self.bank.device))
        return PackedModule(graft, None if parameters is None else _with_parameters(self.module, parameters))

    def set_lora(self, digest: str, packed: PackedModule | None, pages: Sequence[int]) -> None:
        if packed is not None and packed.embedding is not None:
            self.embeddings[digest] = packed.embedding
        if packed is not None and packed.replacement is not None:
            self.replacements[digest] = packed.replacement

    def reset_lora(self, digest: str) -> None:
        self.embeddings.pop(digest, None)
        self.replacements.pop(digest, None)


@dataclass(slots=True)
class Grafts:
    """Every place of one model where adapters attach. ``special`` adapters do more there than to add B·A."""

    merged_linears: list[MergedLinear] = field(default_factory=list)
    modules: list[GraftedModule] = field(default_factory=list)
    special: set[str] = field(default_factory=set)

    def pack(self, adapter: HostAdapter) -> PackedAdapter:
        """Make an adapter ready for the device. This is the work; it may be done in any thread, beside the steps.

        Raises:
            InvalidAdapter: there is a part of the adapter that no place here can take.
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
            parts=tuple(place.pack(adapter) for place in self._places()),
        )

    def set_lora(self, adapter: PackedAdapter, pages: Sequence[int]) -> None:
        for place, part in zip(self._places(), adapter.parts, strict=True):
            place.set_lora(adapter.digest, part, pages)
        if adapter.is_special:
            self.special.add(adapter.digest)

    def reset_lora(self, digest: str) -> None:
        for place in self._places():
            place.reset_lora(digest)
        self.special.discard(digest)

    def _places(self) -> list[MergedLinear | GraftedModule]:
        return [*self.merged_linears, *self.modules]


def columns_of(layers: Sequence[nn.Linear]) -> list[slice]:
    """Where each layer's outputs stand among those of all."""
    ends = itertools.accumulate(layer.out_features for layer in layers)
    return [slice(end - layer.out_features, end) for end, layer in zip(ends, layers, strict=True)]


def stacked_bias(layers: Sequence[nn.Linear], device: torch.device) -> Tensor | None:
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
