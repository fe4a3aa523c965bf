"""The trainable adapter on its base: created or loaded by PEFT, with a fused forward pass for plain LoRA layers."""

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
"""The name under which TRL looks for the adapter that it trains."""


def add_adapter(model: PreTrainedModel, base: BaseInfo, config: TrainConfig) -> peft.PeftModel:
    """Add a new adapter to a base. Only the adapter's weights are trainable; they are float32.

    Args:
        model: the base model; its modules are changed in place.
        base: what is known of the base.
        config: rank, alpha, dropout, targets, layers and variant.

    Raises:
        ConfigurationError: if the base has no such layer, or no module that the targets name.
    """
    if config.layers is not None and max(config.layers) >= base.num_layers:
        raise ConfigurationError(
            f"layers names {max(config.layers)}, and {base.id} has the layers 0 to {base.num_layers - 1}.",
            param="layers",
        )
    lora = peft.LoraConfig(
        task_type=task_type_of(config),
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


def task_type_of(config: TrainConfig) -> peft.TaskType:
    """Return PEFT's name for what the adapter of a run does."""
    return peft.TaskType.SEQ_CLS if config.method == "reward_model" else peft.TaskType.CAUSAL_LM


def head_of(model: PreTrainedModel) -> nn.Module | None:
    """Return the output head: that of the vocabulary, or the scalar one of a reward model."""
    found: nn.Module | None = model.get_output_embeddings() or getattr(model, "score", None)
    return found


def _targets(model: PreTrainedModel, base: BaseInfo, config: TrainConfig) -> str | list[str]:
    if config.targets != "all-linear":
        return list(config.targets)
    if config.layers is None:
        return "all-linear"
    # PEFT accepts layer indices only together with a list of module names.
    names = {name: module for name, module in model.named_modules() if name in base.modules}
    head = head_of(model)
    linear = (name for name, module in names.items() if base.modules[name].kind == "linear" and module is not head)
    return sorted({name.rpartition(".")[2] for name in linear})


def load_adapter(model: PreTrainedModel, parent: Path, config: TrainConfig) -> peft.PeftModel:
    """Load the adapter of an earlier version, to train it further. Rank, targets and variant are those of the adapter.

    Args:
        model: the base model; its modules are changed in place.
        parent: the PEFT folder of the version.
        config: the configuration of the run.

    Raises:
        ConfigurationError: if the adapter has no trainable weight, or is a reward model and is to answer, or the other
            way round.
    """
    if (peft.PeftConfig.from_pretrained(str(parent)).task_type == "SEQ_CLS") != (config.method == "reward_model"):
        raise ConfigurationError(
            f"A reward model is continued by reward_model, and by it alone; this is {config.method}.", param="method"
        )
    # Without is_trainable PEFT loads the adapter for inference, and training would succeed without changing a weight.
    grafted = peft.PeftModel.from_pretrained(model, str(parent), adapter_name=ADAPTER_NAME, is_trainable=True)
    if not trainable_parameters(grafted):
        raise ConfigurationError(f"The adapter in {parent} has nothing that can be trained.", param="parent")
    return cast_trainable_to_float32(grafted)


def cast_trainable_to_float32(model: AnyModule) -> AnyModule:
    """Convert the trainable weights to float32, and return the same model.

    In bfloat16 most of the small updates of an adapter would round to zero. TRL converts adapters on an NF4 base to it.
    """
    for weight in trainable_parameters(model):
        weight.data = weight.data.float()
    return model


def base_model_of(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model inside a PEFT model (adapter layers remain in place), or the model itself."""
    inner: Any = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    found: PreTrainedModel = inner
    return found


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that require gradients."""
    return [weight for weight in model.parameters() if weight.requires_grad]


def quantize_nf4(model: PreTrainedModel) -> PreTrainedModel:
    """Replace all linear layers except the head by bitsandbytes' 4-bit NormalFloat layers, as in QLoRA (Dettmers et al.
    2023), and return the same model."""
    import bitsandbytes

    head = head_of(model)
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
    model.is_loaded_in_4bit = True  # tells PEFT which type of layer to use
    return model


def use_fused_lora(model: peft.PeftModel) -> int:
    """Replace the forward pass of LoRA layers on plain linear layers by one fused operation on 2-D inputs.

    The result is the same. PEFT multiplies 3-D tensors, which torch copies on a CPU, and casts each one between dtypes.

    Returns:
        The number of layers that were changed.
    """
    num_layers = 0
    for module in model.modules():
        if isinstance(module, LoraLinear) and type(module.base_layer) is nn.Linear:
            object.__setattr__(module, "forward", _FusedLoraForward(module))
            num_layers += 1
    return num_layers


class _FusedLoraForward:
    """The forward pass of a LoRA layer. Variants, dropout, LoRA biases and merged layers use PEFT's implementation."""

    def __init__(self, layer: LoraLinear) -> None:
        self._layer = layer
        self._peft_forward = layer.forward

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer = self._layer
        active = layer.active_adapters
        if args or kwargs or layer.merged or (not layer.disable_adapters and len(active) != 1):
            return self._peft_forward(x, *args, **kwargs)  # type: ignore[no-any-return]
        base: nn.Linear = layer.base_layer
        if layer.disable_adapters or active[0] not in layer.lora_A:
            return base(x)  # type: ignore[no-any-return]
        name = active[0]
        dropped = layer.training and not isinstance(layer.lora_dropout[name], nn.Identity)
        if name in layer.lora_variant or dropped or layer.lora_bias[name] or base.weight.requires_grad:
            return self._peft_forward(x)  # type: ignore[no-any-return]
        a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
        out: Tensor = _FusedLora.apply(  # type: ignore[no-untyped-call]
            x, base.weight, base.bias, a, b, layer.scaling[name]
        )
        return out


class _FusedLora(torch.autograd.Function):
    """``x @ W.T + bias + scale * (x @ A.T) @ B.T``; x [..., in], W [out, in], A [rank, in], B [out, rank].

    Computed in the dtype of W, as the base is. The gradients of A and B are float32; W and bias have none.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        flat = x.reshape(-1, x.shape[-1]).to(weight.dtype)
        a, b = a.to(weight.dtype), b.to(weight.dtype)
        out = flat @ weight.T if bias is None else torch.addmm(bias, flat, weight.T)
        low = flat @ a.T  # [tokens, rank]
        out.addmm_(low, b.T, alpha=scale)
        ctx.save_for_backward(flat, weight, a, b, low)
        ctx.scale, ctx.shape, ctx.dtype = scale, x.shape, x.dtype
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        flat, weight, a, b, low = ctx.saved_tensors
        grad = gradients[0].reshape(-1, weight.shape[0]).to(weight.dtype)
        low_grad = grad @ b  # [tokens, rank]
        a_grad = (low_grad.T @ flat).float().mul_(ctx.scale)
        b_grad = (low.T @ grad).T.float().mul_(ctx.scale)  # in this order only the narrow matrix is read transposed
        x_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = torch.mm(grad, weight).addmm_(low_grad, a, alpha=ctx.scale).view(ctx.shape).to(ctx.dtype)
        return x_grad, None, None, a_grad, b_grad, None
