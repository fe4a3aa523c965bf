"""Builds a runner: loads the base, traces it, prepares it for adapters and allocates the cache."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from llguidance import LLTokenizer
from torch import nn

from graftwork.adapters.base import BaseInfo, load_model
from graftwork.adapters.errors import ConfigurationError
from graftwork.server.engine import backend_selector
from graftwork.server.engine.backends.cpu import library
from graftwork.server.engine.backends.cpu.context import KernelContext
from graftwork.server.engine.backends.cpu.forward import (
    MAX_DIVERGENCE,
    CpuForward,
    UnsupportedModel,
    mean_kl_divergence,
)
from graftwork.server.engine.backends.cpu.linear import CpuLinear
from graftwork.server.engine.backends.cpu.sampler import CpuSampler
from graftwork.server.engine.backends.torch.forward import TorchForward
from graftwork.server.engine.backends.torch.linear import TorchLinear
from graftwork.server.engine.backends.torch.sampler import sample_tokens
from graftwork.server.engine.batch import Forward
from graftwork.server.engine.config import GIB, EngineConfig
from graftwork.server.engine.kv.cache import CacheShape, KVCache
from graftwork.server.engine.lora.bank import LoraBank
from graftwork.server.engine.model import attention
from graftwork.server.engine.model import numerics as numerics_module
from graftwork.server.engine.model.grafting import graft_onto
from graftwork.server.engine.model.layers import Grafts, LinearMethod, columns_of, stacked_bias
from graftwork.server.engine.model.trace import ModelTrace, trace_model
from graftwork.server.engine.model.weights import quantize_weights
from graftwork.server.engine.runner import Runner
from graftwork.server.engine.sampler import SampleTokens
from graftwork.server.engine.scheduler import SchedulerConfig

log = logging.getLogger(__name__)

#: Slots for prefixes of ended sequences, for each sequence that may run. On a CPU a slot is only address space.
RETAINED_SLOTS = 3

#: Rotary embeddings whose angles depend on the longest sequence of the batch: neighbours would change an answer.
_BATCH_DEPENDENT_ROPE = ("dynamic", "longrope")


@dataclass(frozen=True, kw_only=True)
class BaseCard:
    """What was loaded and how, for the log and ``/v1/models``.

    Attributes:
        id: The base's name.
        digest: Of its files.
        reason: Why these numbers and kernels were chosen.
        memory_bytes: Size of weights and buffers.
        cache_tokens: Tokens that the key-value cache holds.
        max_length: The most tokens of a sequence.
        max_sequences: The most sequences that run at once.
        slots: Adapters of rank 16 on the device.
        load_seconds: Duration of ``build``.
    """

    id: str
    digest: str
    architecture: str
    num_parameters: int
    device: str
    quantize: str
    dtype: str
    kernels: str
    reason: str
    memory_bytes: int
    cache_tokens: int
    max_length: int
    max_sequences: int
    slots: int
    load_seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, as the JSON of ``/v1/models`` has them."""
        return asdict(self)


@torch.no_grad()
def build(info: BaseInfo, config: EngineConfig) -> tuple[Runner, SchedulerConfig, BaseCard]:
    """Load the base and make it ready to serve.

    Returns:
        The runner, the scheduler's limits, which follow from the memory, and a record of what was chosen.

    Raises:
        ConfigurationError: The base cannot be served, or not with this config; the message says why and what to do.
    """
    began = time.perf_counter()
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    chosen = backend_selector.choose(
        quantize=config.quantize,
        dtype=config.dtype,
        device=config.device,
        kernels=config.kernels,
        num_parameters=info.num_parameters,
    )
    max_length = config.max_length or min(8192, info.max_positions)
    if max_length > info.max_positions:
        raise ConfigurationError(
            f"--max-model-len {max_length}: {info.id} was made for at most {info.max_positions} tokens."
        )
    if max_length < 2:
        raise ConfigurationError(f"--max-model-len {max_length}: a token of the prompt and one of the answer must fit.")
    # Weights are quantized from the CPU's copy, layer by layer: a GPU never holds the unquantized base.
    model = load_model(info, dtype=str(chosen.dtype).removeprefix("torch."), device="cpu")
    _check_rope(model)
    model.config._attn_implementation = attention.IMPLEMENTATION
    model.requires_grad_(False)
    trace = trace_model(model)
    use_triton, misfit = _can_use_triton(config, chosen)
    bank = LoraBank(num_pages=config.num_slots, dtype=chosen.adapter_dtype, device=chosen.device)
    kernel_context, obstacle = _cpu_context(config, chosen)
    make_linear = functools.partial(
        _make_linear, chosen=chosen, bank=bank, kernel_context=kernel_context, use_triton=use_triton
    )
    grafts = graft_onto(model, trace, bank, make_linear)
    model.to(chosen.device)
    max_rows = config.step_tokens + config.max_sequences
    if chosen.device.type == "cpu" and kernel_context is None:
        _warm_up_linears(grafts, max_rows, chosen.dtype)
    memory_bytes = _weight_bytes(model, grafts)
    # The native kernels read halves: keys and values are most of what a step over long sequences reads.
    cache_dtype = chosen.dtype if kernel_context is None else torch.float16
    cache, limits = _allocate_cache(config, trace.kv_sizes, chosen, cache_dtype, max_length)
    forward: Forward = TorchForward(model, bank, cache)
    decoder: Forward | None = None
    if use_triton:
        forward, decoder = _triton_forwards(model, bank, cache, limits)
    if kernel_context is not None:
        decoder, obstacle = _cpu_forward(model, grafts, trace, cache, kernel_context, max_rows)
    card = BaseCard(
        id=info.id,
        digest=info.digest,
        architecture=info.architecture,
        num_parameters=info.num_parameters,
        device=str(chosen.device),
        quantize=chosen.quantize,
        dtype=str(chosen.dtype).removeprefix("torch."),
        kernels="native" if kernel_context is not None else "triton" if use_triton else "torch",
        reason="; ".join(part for part in (chosen.reason, obstacle, misfit) if part),
        memory_bytes=memory_bytes,
        cache_tokens=limits.cache_tokens,
        max_length=limits.max_length,
        max_sequences=limits.max_sequences,
        slots=config.num_slots,
        load_seconds=round(time.perf_counter() - began, 2),
    )
    sampler: SampleTokens = sample_tokens if kernel_context is None else CpuSampler(kernel_context)
    return Runner(forward, decoder, sampler, grafts, bank, cache), limits, card


def load_grammar_tokenizer(info: BaseInfo) -> LLTokenizer | None:
    """The base's tokenizer as grammars need it; ``None``, with a warning, for one of a kind that they cannot use.

    Takes a second and stops all threads meanwhile: call it before there are requests.
    """
    try:
        return LLTokenizer(
            str(Path(info.path, "tokenizer.json")), n_vocab=info.vocab_size, eos_token=list(info.eos_token_ids) or None
        )
    except Exception as error:  # it raises nothing more precise
        log.warning("requests for structured output will be refused: %s", error)
        return None


def _can_use_triton(config: EngineConfig, chosen: numerics_module.Numerics) -> tuple[bool, str]:
    """Whether Triton's kernels run on this GPU, or why they do not: they are tried first."""
    if chosen.kernels != "triton":
        return False, ""
    from graftwork.server.engine.backends.cuda.self_test import find_obstacle  # Triton comes with torch for CUDA only

    if (misfit := find_obstacle(chosen.device, chosen.dtype)) is None:
        return True, ""
    if config.kernels == "triton":
        raise ConfigurationError(f"--kernels triton: {misfit}")
    log.warning("%s. Going on with torch's kernels, which take several times as long.", misfit)
    return False, "torch kernels, Triton's do not run here"


def _triton_forwards(
    model: nn.Module, bank: LoraBank, cache: KVCache, limits: SchedulerConfig
) -> tuple[Forward, Forward | None]:
    """The forward that launches kernel by kernel, and the one that replays graphs where they can be captured."""
    from graftwork.server.engine.backends.cuda import graphs
    from graftwork.server.engine.backends.cuda.forward import TritonForward, capture_graphs

    forward = TritonForward(model, bank, cache)
    forward.warm_up()
    recorder = graphs.CudaGraphRecorder(cache.shape.device)
    return forward, capture_graphs(forward, recorder, max_rows=limits.max_sequences)


def _cpu_context(config: EngineConfig, chosen: numerics_module.Numerics) -> tuple[KernelContext | None, str]:
    """The context of the native kernels, or why there is none: a missing compiler alone is no reason not to start."""
    if chosen.kernels != "native":
        return None, ""
    try:
        return KernelContext(library.load(config.kernel_cache), torch.get_num_threads()), ""
    except ConfigurationError as error:
        if config.kernels == "native":
            raise
        log.warning("%s Going on with torch's kernels, which take about three times as long.", error)
        return None, "torch kernels, the native ones could not be built"


def _make_linear(
    layers: Sequence[nn.Linear],
    *,
    chosen: numerics_module.Numerics,
    bank: LoraBank,
    kernel_context: KernelContext | None,
    use_triton: bool,
) -> LinearMethod:
    """The ``LinearMethod`` of sibling layers that read the same input; takes over their weights."""
    weights = [layer.weight for layer in layers]
    if kernel_context is not None:
        return CpuLinear(weights, stacked_bias(layers, bank.device), bank.num_pages, kernel_context)
    if use_triton:
        from graftwork.server.engine.backends.cuda.lora import TritonLinear

        return TritonLinear(quantize_weights(weights, chosen), bank, layers[0].in_features, columns_of(layers))
    table = bank.new_table(layers[0].in_features, columns_of(layers))
    return TorchLinear(quantize_weights(weights, chosen), table)


def _cpu_forward(
    model: nn.Module, grafts: Grafts, trace: ModelTrace, cache: KVCache, kernel_context: KernelContext, max_rows: int
) -> tuple[CpuForward | None, str]:
    """The whole-step forward of the CPU kernels, or why this model cannot use it."""
    try:
        decoder = CpuForward(model, grafts, trace, cache, kernel_context, max_rows)
    except (UnsupportedModel, AttributeError) as misfit:
        return None, f"layer by layer: {misfit}"
    if (divergence := mean_kl_divergence(decoder, trace, cache)) > MAX_DIVERGENCE:
        return None, f"layer by layer: the decoder is {divergence:.2f} nats away from transformers"
    log.debug("the decoder is %.3f nats away from the unquantized model", divergence)
    return decoder, ""


def _allocate_cache(
    config: EngineConfig,
    kv_sizes: tuple[tuple[int, int], ...],
    chosen: numerics_module.Numerics,
    dtype: torch.dtype,
    max_length: int,
) -> tuple[KVCache, SchedulerConfig]:
    """The cache and the scheduler's limits.

    On a CPU slots are address space and the token budget bounds what is filled; on a GPU slots are memory.
    """
    shape = CacheShape(
        num_slots=config.max_sequences * (RETAINED_SLOTS + 1 if config.prefix_cache else 1),
        slot_length=max_length,
        kv_sizes=kv_sizes,
        dtype=dtype,
        device=chosen.device,
    )
    if chosen.device.type == "cpu":
        total = int(psutil.virtual_memory().total * config.memory_share)
        cache_bytes = config.cache_bytes or min(4 * GIB, total // 4)
    else:
        free = torch.cuda.mem_get_info(chosen.device)[0] - config.reserved_bytes
        cache_bytes = config.cache_bytes or int(max(free, 0) * config.memory_share * 0.8)
        num_slots = min(shape.num_slots, cache_bytes // (shape.bytes_per_token * max_length))
        if num_slots < 1:
            raise ConfigurationError(
                f"{cache_bytes / GIB:.1f} GiB of cache do not hold one sequence of {max_length} tokens. "
                "Lower --max-model-len or raise --kv-memory-gb."
            )
        shape = CacheShape(
            num_slots=num_slots, slot_length=max_length, kv_sizes=kv_sizes, dtype=dtype, device=chosen.device
        )
    cache_tokens = min(cache_bytes // shape.bytes_per_token, shape.num_slots * max_length)
    if cache_tokens < 64:
        raise ConfigurationError(
            f"The cache would hold {cache_tokens} tokens. Raise --kv-memory-gb or --max-model-len."
        )
    limits = SchedulerConfig(
        max_sequences=min(config.max_sequences, shape.num_slots),
        num_slots=shape.num_slots,
        max_length=min(max_length, cache_tokens),
        cache_tokens=cache_tokens,
        step_tokens=config.step_tokens,
        prefix_cache=config.prefix_cache,
    )
    return KVCache(shape), limits


def _check_rope(model: nn.Module) -> None:
    """Refuse rotary embeddings whose angles depend on other sequences of the batch."""
    config = model.config.get_text_config()  # type: ignore[operator, union-attr]
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = parameters.values() if all(isinstance(v, dict) for v in parameters.values()) else [parameters]
    for rope in nested:
        if rope.get("rope_type") in _BATCH_DEPENDENT_ROPE:
            raise ConfigurationError(
                f"This base uses {rope['rope_type']!r} rotary scaling, whose angles depend on the longest sequence of "
                "a batch; it cannot be served in mixed batches yet."
            )


def _warm_up_linears(grafts: Grafts, max_rows: int, dtype: torch.dtype) -> None:
    """Compile the GEMMs of each shape once: layers of one shape share their kernels."""
    products = [p.linear for p in grafts.merged_linears if isinstance(p.linear, TorchLinear)]
    shapes = {(product.table.num_inputs, product.table.slices[-1].stop): product for product in products}
    for (num_inputs, _), product in shapes.items():
        product.weights.warm_up(num_inputs, max_rows, dtype)


def _weight_bytes(model: nn.Module, grafts: Grafts) -> int:
    """Size of all weights and buffers, shared ones counted once."""
    rest = {p.data_ptr(): p.nbytes for p in (*model.parameters(), *model.buffers())}
    return sum(p.linear.num_bytes for p in grafts.merged_linears) + sum(rest.values())
