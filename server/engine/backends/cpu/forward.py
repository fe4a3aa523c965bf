"""A whole step of a decoder-only transformer as one list of kernel calls.

Architectures are recognized by their modules, not by name: a model is supported when its layers consist of the parts
below and nothing else (RMS norms before attention and MLP and perhaps after them, rotary positions, gated MLP, perhaps
norms of queries and keys). Llama, Mistral, Qwen2, Qwen3 and Gemma are. A check of the numbers comes on top: the same
tokens through HF's own modules and through here must give nearly the same logits, else HF's modules are used.

Shapes: T rows of a step, H hidden size, R rows that reach the head, V vocabulary, D head dimension, S rows whose hidden
states are wanted.
"""

from __future__ import annotations

import ctypes
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graftwork.server.engine.backends.cpu.context import KernelContext, RowAdapters
from graftwork.server.engine.backends.cpu.interface import (
    ADD_NORM,
    ATTEND,
    GELU_TIMES,
    NORM,
    SILU_TIMES,
    AttentionFields,
    OpFields,
    StepFields,
)
from graftwork.server.engine.backends.cpu.linear import CpuLinear
from graftwork.server.engine.batch import Batch, ForwardOutput
from graftwork.server.engine.kv.cache import KVCache
from graftwork.server.engine.model.layers import Grafts
from graftwork.server.engine.model.trace import ModelTrace

_ATTENTION_PARTS = {"q_proj", "k_proj", "v_proj", "o_proj"}
_MLP_PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_NORMS = {"input_layernorm", "post_attention_layernorm"}
_SANDWICH_NORMS = _NORMS | {"pre_feedforward_layernorm", "post_feedforward_layernorm"}
_PROLOGUES = {
    "SiLU": SILU_TIMES,
    "SiLUActivation": SILU_TIMES,
    "GELUTanh": GELU_TIMES,
    "PytorchGELUTanh": GELU_TIMES,
}

#: How far the decoder may be from HF's unquantized model in mean Kullback-Leibler divergence (nats) over the trace's
#: tokens: 8-bit numbers alone make 0.03, a part that is missing makes more than 1.
MAX_DIVERGENCE = 0.3


class UnsupportedModel(Exception):
    """The model has a module that ``CpuForward`` does not implement; the message names it."""


@dataclass(frozen=True, slots=True)
class RMSNorm:
    """y = x / rms(x) · weight. ``weight`` is [width] float32, ``eps`` is added to the mean square."""

    weight: Tensor
    eps: float

    @classmethod
    def from_module(cls, module: nn.Module) -> RMSNorm:
        """Read weight and eps of one of HF's RMS norms, also of those whose factor is 1 + weight.

        Raises:
            UnsupportedModel: ``module`` is no RMS norm.
        """
        eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        weight = getattr(module, "weight", None)
        if not isinstance(eps, float) or not isinstance(weight, Tensor) or "RMSNorm" not in type(module).__name__:
            raise UnsupportedModel(f"a norm of type {type(module).__name__}")
        ones = torch.ones(1, weight.shape[0], dtype=torch.float32)
        return cls(weight=(module(ones)[0].float() * (1 + eps) ** 0.5).contiguous(), eps=eps)

    def __call__(self, x: Tensor) -> Tensor:
        """Normalize x [..., width], float32; the kernels norm what they read themselves."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class CpuForward:
    """A ``Forward`` by the CPU kernels.

    Args:
        model: HF's model. Its embedding and rotary module are called; norms are read from it.
        grafts: The model's linear layers, each a ``CpuLinear``.
        trace: What ``trace_model`` recorded of the model.
        cache: Must be float16.
        context: Runs the kernels.
        max_rows: The most tokens of a step.

    Raises:
        UnsupportedModel: The model has a module that is not implemented here.
    """

    def __init__(
        self, model: nn.Module, grafts: Grafts, trace: ModelTrace, cache: KVCache, context: KernelContext, max_rows: int
    ) -> None:
        self.context = context
        self._cache = cache
        products: Mapping[str, CpuLinear] = {
            name: p.linear for p in grafts.merged_linears for name in p.names if isinstance(p.linear, CpuLinear)
        }
        names = {id(module): name for name, module in model.named_modules()}
        body: Any = model.get_decoder()  # type: ignore[operator]
        config: Any = model.config.get_text_config()  # type: ignore[operator, union-attr]
        self._embed: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
        self._rotary = body.rotary_emb
        types = list(getattr(config, "layer_types", None) or ["full_attention"] * len(body.layers))
        by_type = "layer_type" in inspect.signature(self._rotary.forward).parameters
        self._tables: list[str | None] = sorted(set(types)) if by_type else [None]
        self._softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self._head = _find_linear(products, names, [model.get_output_embeddings()])  # type: ignore[operator]
        self._hidden = torch.zeros(max(max_rows, len(trace.logits)), config.hidden_size)
        self._referenced: list[Any] = []  # the kernels hold only pointers to these
        self._buffers: dict[tuple[str, int], Tensor] = {}
        ops: list[OpFields] = []
        for index, layer in enumerate(body.layers):
            rope = self._tables.index(types[index]) if by_type else 0
            ops += self._layer(layer, index, rope, trace, products, names)
        self._ops = (OpFields * len(ops))(*ops)
        self._final_norm = self._keep_norm(RMSNorm.from_module(_plain(body.norm)))
        self._logits = torch.empty(0, self._head.num_outputs)

    def __call__(self, rows: Batch) -> ForwardOutput:
        """Compute a batch, in float32."""
        num_rows = len(rows.tokens)
        self._hidden[:num_rows] = self._embed(torch.tensor([rows.tokens]))[0]
        where = torch.tensor([rows.positions, rows.slots], dtype=torch.int32)
        tables = [self._angles(where[0].long()[None], table) for table in self._tables]
        adapters = RowAdapters(rows.runs, num_rows)
        step = StepFields(
            num_rows=num_rows,
            position=where[0].data_ptr(),
            slot=where[1].data_ptr(),
            cos=_pointers([cos for cos, _ in tables]),
            sin=_pointers([sin for _, sin in tables]),
            adapters=adapters.fields,
        )
        self.context.run(self._ops, step)
        hidden = self._final_norm(self._hidden[torch.tensor(rows.hidden_indices)]) if rows.hidden_indices else None
        return ForwardOutput(self._logits_of(rows), hidden)

    def _logits_of(self, rows: Batch) -> Tensor:
        """[R, V] float32; they are overwritten by the next call."""
        kept = len(rows.logits_indices)
        if kept > len(self._logits):
            self._logits = torch.empty(kept, self._head.num_outputs)
        logits = self._logits[:kept]
        if not kept:
            return logits
        hidden = self._hidden[torch.tensor(rows.logits_indices)]
        adapters = RowAdapters(rows.head_runs(), kept)
        op = self._head.op(
            hidden, logits, prologue=NORM, norm=self._final_norm.weight, eps=self._final_norm.eps, with_bias=True
        )
        self.context.run((OpFields * 1)(op), StepFields(num_rows=kept, adapters=adapters.fields))
        if self._softcap is not None:
            logits.div_(self._softcap).tanh_().mul_(self._softcap)
        return logits

    def _angles(self, positions: Tensor, table: str | None) -> tuple[Tensor, Tensor]:
        """cos and sin [T, rotary dimension] float32, computed by the model's own rotary module."""
        arguments = (positions,) if table is None else (positions, table)
        cos, sin = self._rotary(self._hidden[None, :1], *arguments)
        return cos[0].float().contiguous(), sin[0].float().contiguous()

    # -- the list of calls ---------------------------------------------------------------------------------------
    def _layer(
        self,
        layer: Any,
        index: int,
        rope: int,
        trace: ModelTrace,
        products: Mapping[str, CpuLinear],
        names: Mapping[int, str],
    ) -> list[OpFields]:
        parts = _children(layer) - {"self_attn", "mlp"}
        if parts not in (_NORMS, _SANDWICH_NORMS):
            raise UnsupportedModel(f"a layer of {', '.join(sorted(_children(layer)))}")
        attention, mlp = layer.self_attn, layer.mlp
        extra = _children(attention) - _ATTENTION_PARTS
        if extra not in (set(), {"q_norm", "k_norm"}) or _children(mlp) != _MLP_PARTS:
            raise UnsupportedModel(f"{type(attention).__name__} with {type(mlp).__name__}")
        prologue = _PROLOGUES.get(type(mlp.act_fn).__name__)
        if prologue is None:
            raise UnsupportedModel(f"the activation {type(mlp.act_fn).__name__}")
        qkv = _find_linear(products, names, [attention.q_proj, attention.k_proj, attention.v_proj])
        out = _find_linear(products, names, [attention.o_proj])
        gate_up = _find_linear(products, names, [mlp.gate_proj, mlp.up_proj])
        down = _find_linear(products, names, [mlp.down_proj])

        hidden, max_rows = self._hidden, len(self._hidden)
        projected, attended = self._buffer("qkv", max_rows, qkv), self._buffer("out", max_rows, out, of_inputs=True)
        opened = self._buffer("gate_up", max_rows, gate_up)
        before = self._keep_norm(RMSNorm.from_module(_plain(layer.input_layernorm)))
        sandwich = parts == _SANDWICH_NORMS
        norm_name = "pre_feedforward_layernorm" if sandwich else "post_attention_layernorm"
        between = self._keep_norm(RMSNorm.from_module(_plain(getattr(layer, norm_name))))

        ops = [
            qkv.op(hidden, projected, prologue=NORM, norm=before.weight, eps=before.eps, with_bias=True),
            self._attend(attention, index, rope, trace, projected, attended),
        ]
        ops += self._add_to_hidden(out, attended, layer.post_attention_layernorm if sandwich else None)
        ops.append(gate_up.op(hidden, opened, prologue=NORM, norm=between.weight, eps=between.eps, with_bias=True))
        after = layer.post_feedforward_layernorm if sandwich else None
        ops += self._add_to_hidden(down, opened, after, prologue=prologue)
        return ops

    def _add_to_hidden(self, product: CpuLinear, x: Tensor, norm: nn.Module | None, **how: Any) -> list[OpFields]:
        """hidden += W·x, or hidden += norm(W·x)."""
        if norm is None:
            return [product.op(x, self._hidden, accumulate=True, with_bias=True, **how)]
        apart = self._buffer("apart", len(self._hidden), product)
        kept = self._keep_norm(RMSNorm.from_module(_plain(norm)))
        add = OpFields(
            kind=ADD_NORM,
            x=apart.data_ptr(),
            y=self._hidden.data_ptr(),
            x_width=apart.shape[1],
            y_width=self._hidden.shape[1],
            norm=kept.weight.data_ptr(),
            eps=kept.eps,
        )
        return [product.op(x, apart, with_bias=True, **how), add]

    def _attend(self, attention: Any, index: int, rope: int, trace: ModelTrace, x: Tensor, y: Tensor) -> OpFields:
        traits = trace.attention[index]
        keys = self._cache.keys[index]
        if keys.dtype != torch.float16:
            raise UnsupportedModel(f"a cache of {keys.dtype}")
        norms = [
            self._keep_norm(RMSNorm.from_module(_plain(getattr(attention, name)))) if hasattr(attention, name) else None
            for name in ("q_norm", "k_norm")
        ]
        q_norm, k_norm = norms
        if any(norm is not None and norm.weight.shape[0] != traits.head_dim for norm in norms):
            raise UnsupportedModel("norms over all heads at once")
        cos, _ = self._angles(torch.zeros(1, 1, dtype=torch.long), self._tables[rope])
        fields = AttentionFields(
            keys=keys.data_ptr(),
            values=self._cache.values[index].data_ptr(),
            slot_stride=keys.stride(0),
            num_heads=traits.num_heads,
            num_kv_heads=traits.num_kv_heads,
            dim=traits.head_dim,
            rotary_dim=cos.shape[1],
            scale=traits.scale,
            softcap=traits.softcap or 0.0,
            window=traits.window or 0,
            rope=rope,
            q_norm=None if q_norm is None else q_norm.weight.data_ptr(),
            k_norm=None if k_norm is None else k_norm.weight.data_ptr(),
            eps=0.0 if q_norm is None else q_norm.eps,
        )
        self._referenced.append(fields)
        return OpFields(
            kind=ATTEND,
            x=x.data_ptr(),
            y=y.data_ptr(),
            x_width=x.shape[1],
            y_width=y.shape[1],
            attention=ctypes.pointer(fields),
        )

    def _buffer(self, name: str, max_rows: int, product: CpuLinear, *, of_inputs: bool = False) -> Tensor:
        """The buffer [max_rows, width] of that name; all layers share it."""
        width = product.num_inputs if of_inputs else product.num_outputs
        if (name, width) not in self._buffers:
            self._buffers[name, width] = torch.zeros(max_rows, width)
        return self._buffers[name, width]

    def _keep_norm(self, norm: RMSNorm) -> RMSNorm:
        self._referenced.append(norm)
        return norm


def mean_kl_divergence(decoder: CpuForward, trace: ModelTrace, cache: KVCache) -> float:
    """Mean Kullback-Leibler divergence, in nats, of the decoder's distributions from those of HF's model.

    Computed over the tokens of the trace. Slot 0 of the cache is overwritten and reset.
    """
    tokens = list(range(len(trace.logits)))
    rows = Batch(tokens=tokens, positions=tokens, slots=[0] * len(tokens), logits_indices=tokens)
    cache.reset(0)
    cache.extend(0, len(tokens))
    actual, expected = (torch.log_softmax(logits, dim=-1) for logits in (decoder(rows).logits, trace.logits))
    cache.reset(0)
    return float((expected.exp() * (expected - actual)).sum(-1).mean())


def _find_linear(products: Mapping[str, CpuLinear], names: Mapping[int, str], layers: Sequence[Any]) -> CpuLinear:
    """The ``CpuLinear`` whose members are exactly ``layers``."""
    found = [products.get(names.get(id(layer), "")) for layer in layers]
    product = found[0]
    if product is None or any(other is not product for other in found) or len(product.members) != len(layers):
        raise UnsupportedModel(f"layers that do not read one input: {', '.join(names.get(id(x), '?') for x in layers)}")
    return product


def _plain(module: Any) -> nn.Module:
    """The module that a ``GraftedModule`` wraps, or ``module`` itself."""
    inner: nn.Module = getattr(module, "module", module)
    return inner


def _children(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}


def _pointers(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
