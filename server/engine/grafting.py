"""Turns a plain HF causal LM into one that adapters can be grafted onto, module by module.

* Linear layers that read the same tensor (q, k, v; gate, up) become one ``Projections``: one GEMM over stacked weights,
  one LoRA table. Which layers are siblings is seen by running the model once and watching who reads what, so no
  architecture needs to be known by name.
* Embeddings and norms are wrapped so that an adapter may add to them or bring its own (PEFT's modules_to_save).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graftwork.adapters.errors import ConfigurationError, InvalidAdapter
from graftwork.server.engine.attention import TrialAttention
from graftwork.server.engine.host_adapter import EmbeddingGraft, HostAdapter
from graftwork.server.engine.lora_bank import Extras, LoraBank, LoraPlan, LoraTable, Run
from graftwork.server.engine.numerics import Numerics
from graftwork.server.engine.weights import Weights, hold


class Projections:
    """Sibling linear layers as one: y = W·x, plus what each row's adapter adds."""

    def __init__(
        self, names: Sequence[str], layers: Sequence[nn.Linear], weights: Weights, bank: LoraBank, *, is_head: bool
    ) -> None:
        self.names = list(names)
        self.weights = weights
        self.is_head = is_head
        self.bank = bank
        sizes = [layer.out_features for layer in layers]
        ends = torch.tensor(sizes).cumsum(0).tolist()
        self.slices = [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
        self.bias = _stacked_bias(layers, bank.device)
        self.table: LoraTable = bank.new_table(layers[0].in_features, self.slices)
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
        y = self.weights.matmul(x)
        if plan is None:
            return y if self.bias is None else y.add_(self.bias)
        self.table.add(plan, x, y)
        special = [run for run in plan.runs if run.digest in self.table.extras]
        for run in special:
            self._scale_columns(run, y)
        if self.bias is not None:
            y += self.bias
        for run in special:
            self._finish(run, x, y)
        return y

    def _scale_columns(self, run: Run, y: Tensor) -> None:
        for index, extras in self.table.extras[run.digest].items():
            if extras.column_scale is not None:
                y[run.start : run.stop, self.slices[index]] *= extras.column_scale

    def _finish(self, run: Run, x: Tensor, y: Tensor) -> None:
        rows = slice(run.start, run.stop)
        for index, extras in self.table.extras[run.digest].items():
            if extras.bias is not None:
                y[rows, self.slices[index]] += extras.bias
            if extras.replacement is not None:
                weight, bias = extras.replacement
                y[rows, self.slices[index]] = F.linear(x[rows].to(weight.dtype), weight, bias).to(y.dtype)

    # -- adapters come and go ------------------------------------------------------------------------------------
    def seat(self, adapter: HostAdapter, pages: Sequence[int]) -> None:
        grafts = {i: adapter.linears[name] for i, name in enumerate(self.names) if name in adapter.linears}
        self.table.write(pages, grafts)
        extras: dict[int, Extras] = {}
        for index, name in enumerate(self.names):
            extra = Extras()
            if (graft := grafts.get(index)) is not None:
                extra.bias = None if graft.bias is None else self._place(graft.bias)
                if graft.magnitude is not None:
                    delta = torch.einsum("pri,pro->oi", graft.a.float(), graft.b.float())
                    norm = (self.weights.dense()[self.slices[index]] + delta.to(self.bank.device)).norm(dim=1)
                    extra.column_scale = self._place(graft.magnitude.to(norm.device) / norm)
            if (own := adapter.replaced.get(name)) is not None:
                bias = self._place(own["bias"]) if "bias" in own else self._own_bias(index)
                extra.replacement = (self._place(own["weight"]), bias)
            if extra != Extras():
                extras[index] = extra
        if extras:
            self.table.extras[adapter.digest] = extras

    def leave(self, digest: str) -> None:
        self.table.extras.pop(digest, None)

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

    def seat(self, adapter: HostAdapter, pages: Sequence[int]) -> None:
        if (graft := adapter.embeddings.get(self.name)) is not None:
            self.embeddings[adapter.digest] = EmbeddingGraft(
                a=graft.a.to(self.bank.device), b=graft.b.to(self.bank.device)
            )
        if (parameters := adapter.replaced.get(self.name)) is not None:
            self.replacements[adapter.digest] = _with_parameters(self.module, parameters)

    def leave(self, digest: str) -> None:
        self.embeddings.pop(digest, None)
        self.replacements.pop(digest, None)


@dataclass(slots=True)
class Grafts:
    """Every place of one model where adapters attach."""

    projections: list[Projections] = field(default_factory=list)
    modules: list[GraftedModule] = field(default_factory=list)

    def check(self, adapter: HostAdapter) -> None:
        """Raise InvalidAdapter if there is a part of the adapter that no place here can take."""
        linears = {name for p in self.projections for name in p.names}
        modules = {m.name for m in self.modules}
        for name in {*adapter.linears, *adapter.embeddings, *adapter.replaced} - linears - modules:
            raise InvalidAdapter(
                f"The adapter touches {name!r}, which this server cannot graft onto. Train it without that module."
            )

    def seat(self, adapter: HostAdapter, pages: Sequence[int]) -> None:
        for place in self._places():
            place.seat(adapter, pages)

    def leave(self, digest: str) -> None:
        for place in self._places():
            place.leave(digest)

    def _places(self) -> list[Projections | GraftedModule]:
        return [*self.projections, *self.modules]


#: A prime, so that it is not mistaken for any other size of a tensor.
NUM_TRIAL_TOKENS = 37


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What one run of the untouched model shows.

    ``families`` are the names of linear layers that read the same tensor, in the order they read it; ``token_wise``
    the other leaf modules, with the axis on which their input counts tokens; ``kv_sizes`` each layer's (kv_heads,
    head_dim).
    """

    families: list[list[str]]
    token_wise: dict[str, int]
    kv_sizes: tuple[tuple[int, int], ...]


def graft_onto(model: nn.Module, trial: Trial, bank: LoraBank, numerics: Numerics) -> Grafts:
    """Replace every module of ``model`` that adapters may touch."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    modules = dict(model.named_modules())
    grafts = Grafts()
    for family in trial.families:
        layers = [layer for layer in map(modules.__getitem__, family) if isinstance(layer, nn.Linear)]
        with torch.no_grad():
            weights = hold([layer.weight for layer in layers], numerics)
        projections = Projections(family, layers, weights, bank, is_head=any(layer is head for layer in layers))
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
            model(input_ids=ids, use_cache=False, graft_attention=attention)
    finally:
        for handle in handles:
            handle.remove()
    seen = [name for family in families for name in family]
    if len(seen) != len(set(seen)) or set(seen) != linear:
        odd = sorted(linear ^ set(seen) or {name for name in seen if seen.count(name) > 1})
        raise ConfigurationError(
            f"{type(model).__name__} does not run {odd[0]} exactly once per token; it cannot be served."
        )
    if not attention.kv_sizes or sorted(attention.kv_sizes) != list(range(len(attention.kv_sizes))):
        raise ConfigurationError(f"{type(model).__name__} has layers without plain attention; it cannot be served.")
    return Trial(
        families=families,
        token_wise=token_wise,
        kv_sizes=tuple(attention.kv_sizes[i] for i in range(len(attention.kv_sizes))),
    )


def _stacked_bias(layers: Sequence[nn.Linear], device: torch.device) -> Tensor | None:
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
