"""Turns a plain HF causal LM into one that adapters can be grafted onto, module by module.

* Linear layers that read the same tensor (q, k, v; gate, up) become one ``Projections``: one GEMM over stacked weights,
  one LoRA table. Which layers are siblings is seen by running the model once and watching who reads what, so no
  architecture needs to be known by name.
* Embeddings and norms are wrapped so that an adapter may add to them or bring its own (PEFT's modules_to_save).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graftwork.adapters.errors import ConfigurationError, InvalidAdapter
from graftwork.server.engine.attention import AttentionTraits, TrialAttention
from graftwork.server.engine.host_adapter import EmbeddingGraft, HostAdapter, LinearGraft
from graftwork.server.engine.lora_bank import Extras, LoraBank, LoraPlan, LoraTable, Run
from graftwork.server.engine.weights import Weights


class Packed(Protocol):
    @property
    def num_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class PlainGrafts:
    """Grafts as they were read."""

    grafts: Mapping[int, LinearGraft]

    @property
    def num_bytes(self) -> int:
        return sum(graft.a.nbytes + graft.b.nbytes for graft in self.grafts.values())


class Product(Protocol):
    """W·x of sibling linear layers, plus B·A·x of each row's adapter: the two are computed together where that pays."""

    def multiply(self, x: Tensor, plan: LoraPlan | None) -> Tensor:
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


class TorchProduct:
    """The plain way: one GEMM for the base, and the bank's table for the adapters."""

    def __init__(self, weights: Weights, table: LoraTable) -> None:
        self.weights = weights
        self.table = table

    def multiply(self, x: Tensor, plan: LoraPlan | None) -> Tensor:
        y = self.weights.matmul(x)
        if plan is not None:
            self.table.add(plan, x, y)
        return y

    def pack(self, grafts: Mapping[int, LinearGraft]) -> PlainGrafts:
        return PlainGrafts(grafts)

    def write(self, pages: Sequence[int], packed: PlainGrafts | None) -> None:
        self.table.write(pages, packed.grafts if packed is not None else {})

    def dense(self) -> Tensor:
        return self.weights.dense()

    @property
    def num_bytes(self) -> int:
        return self.weights.num_bytes


@dataclass(frozen=True, slots=True)
class PackedProjections:
    """An adapter's part in one ``Projections``."""

    grafts: Packed | None
    extras: dict[int, Extras]

    @property
    def num_bytes(self) -> int:
        own = sum(e.replacement[0].nbytes for e in self.extras.values() if e.replacement is not None)
        return own + (self.grafts.num_bytes if self.grafts is not None else 0)


#: Makes the product of sibling layers.
Hold = Callable[[Sequence[nn.Linear]], Product]


class Projections:
    """Sibling linear layers as one: y = W·x, plus what each row's adapter adds."""

    def __init__(
        self, names: Sequence[str], layers: Sequence[nn.Linear], product: Product, bank: LoraBank, *, is_head: bool
    ) -> None:
        self.names = list(names)
        self.product = product
        self.is_head = is_head
        self.bank = bank
        self.slices = columns_of(layers)
        self.bias = stacked_bias(layers, bank.device)
        self.extras: dict[str, dict[int, Extras]] = {}
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
        y = self.product.multiply(x, plan)
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

    def _scale_columns(self, run: Run, y: Tensor) -> None:
        for index, extras in self.extras[run.digest].items():
            if extras.column_scale is not None:
                y[run.start : run.stop, self.slices[index]] *= extras.column_scale

    def _finish(self, run: Run, x: Tensor, y: Tensor) -> None:
        rows = slice(run.start, run.stop)
        for index, extras in self.extras[run.digest].items():
            if extras.bias is not None:
                y[rows, self.slices[index]] += extras.bias
            if extras.replacement is not None:
                weight, bias = extras.replacement
                y[rows, self.slices[index]] = F.linear(x[rows].to(weight.dtype), weight, bias).to(y.dtype)

    # -- adapters come and go ------------------------------------------------------------------------------------
    def pack(self, adapter: HostAdapter) -> PackedProjections | None:
        grafts = {i: adapter.linears[name] for i, name in enumerate(self.names) if name in adapter.linears}
        extras: dict[int, Extras] = {}
        for index, name in enumerate(self.names):
            extra = Extras()
            if (graft := grafts.get(index)) is not None:
                extra.bias = None if graft.bias is None else self._place(graft.bias)
                if graft.magnitude is not None:
                    delta = torch.einsum("pri,pro->oi", graft.a.float(), graft.b.float())
                    norm = (self.product.dense()[self.slices[index]] + delta.to(self.bank.device)).norm(dim=1)
                    extra.column_scale = self._place(graft.magnitude.to(norm.device) / norm)
            if (own := adapter.replaced.get(name)) is not None:
                bias = self._place(own["bias"]) if "bias" in own else self._own_bias(index)
                extra.replacement = (self._place(own["weight"]), bias)
            if extra != Extras():
                extras[index] = extra
        if not grafts and not extras:
            return None
        return PackedProjections(self.product.pack(grafts) if grafts else None, extras)

    def seat(self, digest: str, packed: PackedProjections | None, pages: Sequence[int]) -> None:
        self.product.write(pages, packed.grafts if packed is not None else None)
        if packed is not None and packed.extras:
            self.extras[digest] = packed.extras

    def leave(self, digest: str) -> None:
        self.extras.pop(digest, None)

    def _own_bias(self, index: int) -> Tensor | None:
        return None if self.bias is None else self.bias[self.slices[index]].to(self.bank.dtype)

    def _place(self, tensor: Tensor) -> Tensor:
        return tensor.to(device=self.bank.device, dtype=self.bank.dtype)


class ProjectionMember(nn.Module):
    """Stands where a linear layer stood."""

    def __init__(self, projections: Projections, index: int, layer: nn.Linear) -> None:
        super().__init__()
        self.projections = projections
        self.index = index
        self.in_features = layer.in_features
        self.out_features = layer.out_features

    def forward(self, x: Tensor) -> Tensor:
        return self.projections.member(self.index, x)


@dataclass(frozen=True, slots=True)
class PackedModule:
    """An adapter's part in one ``GraftedModule``."""

    embedding: EmbeddingGraft | None
    replacement: nn.Module | None

    @property
    def num_bytes(self) -> int:
        own = list(self.replacement.parameters(recurse=False)) if self.replacement is not None else []
        return sum(t.nbytes for t in own) + (self.embedding.a.nbytes + self.embedding.b.nbytes if self.embedding else 0)


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

    def seat(self, digest: str, packed: PackedModule | None, pages: Sequence[int]) -> None:
        if packed is not None and packed.embedding is not None:
            self.embeddings[digest] = packed.embedding
        if packed is not None and packed.replacement is not None:
            self.replacements[digest] = packed.replacement

    def leave(self, digest: str) -> None:
        self.embeddings.pop(digest, None)
        self.replacements.pop(digest, None)


@dataclass(frozen=True, slots=True)
class PackedAdapter:
    """An adapter in host memory as every place takes it: to seat it is to copy. ``parts`` in the order of the places.

    ``names`` are the modules that it touches; ``is_special`` when it does more there than to add B·A.
    """

    digest: str
    num_pages: int
    names: frozenset[str]
    is_special: bool
    parts: tuple[Any, ...]

    @property
    def num_bytes(self) -> int:
        return sum(part.num_bytes for part in self.parts if part is not None)


@dataclass(slots=True)
class Grafts:
    """Every place of one model where adapters attach. ``special`` adapters do more there than to add B·A."""

    projections: list[Projections] = field(default_factory=list)
    modules: list[GraftedModule] = field(default_factory=list)
    special: set[str] = field(default_factory=set)

    def pack(self, adapter: HostAdapter) -> PackedAdapter:
        """Make an adapter ready to be seated. This is the work; it may be done in any thread, beside the steps.

        Raises:
            InvalidAdapter: there is a part of the adapter that no place here can take.
        """
        linears = {name for p in self.projections for name in p.names}
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

    def seat(self, adapter: PackedAdapter, pages: Sequence[int]) -> None:
        for place, part in zip(self._places(), adapter.parts, strict=True):
            place.seat(adapter.digest, part, pages)
        if adapter.is_special:
            self.special.add(adapter.digest)

    def leave(self, digest: str) -> None:
        for place in self._places():
            place.leave(digest)
        self.special.discard(digest)

    def _places(self) -> list[Projections | GraftedModule]:
        return [*self.projections, *self.modules]


#: A prime, so that it is not mistaken for any other size of a tensor.
NUM_TRIAL_TOKENS = 37


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What one run of the untouched model shows.

    ``families`` are the names of linear layers that read the same tensor, in the order they read it; ``token_wise``
    the other leaf modules, with the axis on which their input counts tokens; ``attention`` what each layer asks for;
    ``logits`` [NUM_TRIAL_TOKENS, V] what it said of the tokens 0, 1, 2, …
    """

    families: list[list[str]]
    token_wise: dict[str, int]
    attention: tuple[AttentionTraits, ...]
    logits: Tensor

    @property
    def kv_sizes(self) -> tuple[tuple[int, int], ...]:
        """Each layer's (kv_heads, head_dim)."""
        return tuple((layer.num_kv_heads, layer.head_dim) for layer in self.attention)


def graft_onto(model: nn.Module, trial: Trial, bank: LoraBank, hold: Hold) -> Grafts:
    """Replace every module of ``model`` that adapters may touch; ``hold`` takes the linear layers' weights over."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    modules = dict(model.named_modules())
    grafts = Grafts()
    for family in trial.families:
        layers = [layer for layer in map(modules.__getitem__, family) if isinstance(layer, nn.Linear)]
        with torch.no_grad():
            product = hold(layers)
        projections = Projections(family, layers, product, bank, is_head=any(layer is head for layer in layers))
        for index, (name, layer) in enumerate(zip(family, layers, strict=True)):
            _replace(model, name, ProjectionMember(projections, index, layer))
        grafts.projections.append(projections)
    for name, axis in trial.token_wise.items():
        grafted = GraftedModule(name, modules[name], axis, bank)
        _replace(model, name, grafted)
        grafts.modules.append(grafted)
    return grafts


def try_out(model: nn.Module) -> Trial:
    """Run the model once and watch who reads what.

    Raises:
        ConfigurationError: the architecture is one that cannot be served; the message says why.
    """
    families: list[list[str]] = []
    token_wise: dict[str, int] = {}
    newest: tuple[Tensor, list[str]] | None = None

    def watch_linear(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            nonlocal newest
            x = inputs[0]
            if newest is not None and newest[0] is x:
                newest[1].append(name)
                return
            families.append([name])
            newest = (x, families[-1])

        return hook

    def watch_leaf(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            axes = [axis for axis, size in enumerate(inputs[0].shape) if size == NUM_TRIAL_TOKENS] if inputs else []
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
    attention = TrialAttention()
    try:
        with torch.inference_mode():
            ids = torch.tensor([list(range(NUM_TRIAL_TOKENS))], device=next(model.parameters()).device)
            logits: Tensor = model(input_ids=ids, use_cache=False, graft_attention=attention).logits[0].float()
    finally:
        for handle in handles:
            handle.remove()
    seen = [name for family in families for name in family]
    if len(seen) != len(set(seen)) or set(seen) != linear:
        odd = sorted(linear ^ set(seen) or {name for name in seen if seen.count(name) > 1})
        raise ConfigurationError(
            f"{type(model).__name__} does not run {odd[0]} exactly once per token; it cannot be served."
        )
    if not attention.layers or sorted(attention.layers) != list(range(len(attention.layers))):
        raise ConfigurationError(f"{type(model).__name__} has layers without plain attention; it cannot be served.")
    return Trial(
        families=families,
        token_wise=token_wise,
        attention=tuple(attention.layers[i] for i in range(len(attention.layers))),
        logits=logits,
    )


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


def _is_leaf_with_parameters(module: nn.Module) -> bool:
    return not list(module.children()) and bool(list(module.parameters(recurse=False)))


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def _with_parameters(module: nn.Module, parameters: Mapping[str, Tensor]) -> nn.Module:
    """A shallow copy of ``module`` with its own parameters."""
    own = copy.copy(module)
    own._parameters = dict(module._parameters)
    for name, tensor in parameters.items():
        old = module._parameters[name]
        own._parameters[name] = nn.Parameter(tensor.to(old) if old is not None else tensor, requires_grad=False)
    return own
