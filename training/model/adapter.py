"""The adapter on its base while it learns: a fresh one, one that is continued, and what makes its steps quick.

Imports PEFT.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import peft
import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from transformers import PreTrainedModel

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.errors import ConfigurationError
from graftwork.training.config import TrainConfig

AnyModule = TypeVar("AnyModule", bound=nn.Module)

ADAPTER_NAME = "default"
"""TRL looks for the adapter that it trains under this name alone."""


def add_adapter(model: PreTrainedModel, base: BaseInfo, config: TrainConfig) -> peft.PeftModel:
    """The base with a new adapter grafted on, whose weights alone are trainable, in float32. ConfigurationError when
    the base has no module to adapt."""
    if config.layers is not None and max(config.layers) >= base.num_layers:
        raise ConfigurationError(
            f"layers names {max(config.layers)}, and {base.id} has the layers 0 to {base.num_layers - 1}.",
            param="layers",
        )
    lora = peft.LoraConfig(
        task_type=peft.TaskType.CAUSAL_LM,
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        use_rslora=config.variant == "rslora",
        use_dora=config.variant == "dora",
        layers_to_transform=None if config.layers is None else list(config.layers),
        target_modules=_targets(model, base, config),
    )
    try:
        grafted = peft.get_peft_model(model, lora)
    except ValueError as error:
        raise ConfigurationError(
            f"{base.id} has no module that targets={config.targets!r} names ({error}).", param="targets"
        ) from error
    if not trainable_parameters(grafted):
        raise ConfigurationError(
            f"Nothing of {base.id} would be trained with targets={config.targets!r}.", param="targets"
        )
    return cast_trainable_to_float32(grafted)


def _targets(model: PreTrainedModel, base: BaseInfo, config: TrainConfig) -> str | list[str]:
    if config.targets != "all-linear":
        return list(config.targets)
    if config.layers is None:
        return "all-linear"
    # PEFT takes the layers' numbers beside a list of names alone.
    names = {name: module for name, module in model.named_modules() if name in base.modules}
    head = model.get_output_embeddings()
    linear = (name for name, module in names.items() if base.modules[name].kind == "linear" and module is not head)
    return sorted({name.rpartition(".")[2] for name in linear})


def load_adapter(model: PreTrainedModel, parent: Path) -> peft.PeftModel:
    """The base with an older version's adapter, to be trained further: its rank, targets and variant are its own.
    ConfigurationError when nothing of it can be trained."""
    # Without is_trainable PEFT loads it for inference, and a run would end well without a single weight moved.
    grafted = peft.PeftModel.from_pretrained(model, str(parent), adapter_name=ADAPTER_NAME, is_trainable=True)
    if not trainable_parameters(grafted):
        raise ConfigurationError(f"The adapter in {parent} has nothing that can be trained.", param="parent")
    return cast_trainable_to_float32(grafted)


def cast_trainable_to_float32(model: AnyModule) -> AnyModule:
    """The same model; in bfloat16 most of an adapter's small steps round to nothing, and TRL makes it that on an NF4
    base."""
    for weight in trainable_parameters(model):
        weight.data = weight.data.float()
    return model


def base_model_of(model: nn.Module) -> PreTrainedModel:
    """The transformers model itself, with the adapter's layers in it if it has one."""
    inner: Any = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    found: PreTrainedModel = inner
    return found


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that training moves."""
    return [weight for weight in model.parameters() if weight.requires_grad]


def quantize_nf4(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with its linear layers but the head in bitsandbytes' 4 bits, as QLoRA holds them."""
    import bitsandbytes

    head = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if type(module) is not nn.Linear or module is head:
            continue
        weight = module.weight
        packed = bitsandbytes.nn.Linear4bit(
            module.in_features,
            module.out_features,
            bias=module.bias is not None,
            compute_dtype=weight.dtype,
            quant_type="nf4",
        )
        packed.weight = bitsandbytes.nn.Params4bit(weight.data, requires_grad=False, quant_type="nf4")
        packed.bias = module.bias
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, packed.to(weight.device))
    model.is_loaded_in_4bit = True  # how PEFT sees what to graft on
    return model


def use_fused_lora(model: peft.PeftModel) -> int:
    """Compute plain LoRA on plain linear layers in one operation on 2-D inputs, and say on how many. The same sums:
    PEFT's own way multiplies 3-D tensors, which torch on a CPU copies one by one, and casts each between dtypes."""
    quick = 0
    for module in model.modules():
        if isinstance(module, LoraLinear) and type(module.base_layer) is nn.Linear:
            object.__setattr__(module, "forward", _FusedLoraForward(module))
            quick += 1
    return quick


class _FusedLoraForward:
    """A LoRA layer's forward pass. Whatever is not plain goes PEFT's way."""

    def __init__(self, layer: LoraLinear) -> None:
        self._layer = layer
        self._slow = layer.forward

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer = self._layer
        active = layer.active_adapters
        if args or kwargs or layer.merged or (not layer.disable_adapters and len(active) != 1):
            return self._slow(x, *args, **kwargs)  # type: ignore[no-any-return]
        base: nn.Linear = layer.base_layer
        if layer.disable_adapters or active[0] not in layer.lora_A:
            return base(x)  # type: ignore[no-any-return]
        name = active[0]
        dropped = layer.training and not isinstance(layer.lora_dropout[name], nn.Identity)
        if name in layer.lora_variant or dropped or layer.lora_bias[name] or base.weight.requires_grad:
            return self._slow(x)  # type: ignore[no-any-return]
        a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
        out: Tensor = _FusedLora.apply(  # type: ignore[no-untyped-call]
            x, base.weight, base.bias, a, b, layer.scaling[name]
        )
        return out


class _FusedLora(torch.autograd.Function):
    """``x @ W.T + bias + scale * (x @ A.T) @ B.T``; x (..., in), W (out, in), A (rank, in), B (out, rank).

    Computed in W's dtype, as the base is; the gradients of A and B come in A's and B's own. W has none.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        flat = x.reshape(-1, x.shape[-1]).to(weight.dtype)
        a, b = a.to(weight.dtype), b.to(weight.dtype)
        out = flat @ weight.T if bias is None else torch.addmm(bias, flat, weight.T)
        low = flat @ a.T  # (tokens, rank)
        out.addmm_(low, b.T, alpha=scale)
        ctx.save_for_backward(flat, weight, a, b, low)
        ctx.scale, ctx.shape, ctx.dtype = scale, x.shape, x.dtype
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        flat, weight, a, b, low = ctx.saved_tensors
        grad = gradients[0].reshape(-1, weight.shape[0]).to(weight.dtype)
        low_grad = grad @ b  # (tokens, rank)
        of_a = (low_grad.T @ flat).float().mul_(ctx.scale)
        of_b = (low.T @ grad).T.float().mul_(ctx.scale)  # so that only the narrow one is read transposed
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = torch.mm(grad, weight).addmm_(low_grad, a, alpha=ctx.scale).view(ctx.shape).to(ctx.dtype)
        return of_x, None, None, of_a, of_b, None
