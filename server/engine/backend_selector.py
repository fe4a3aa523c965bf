"""Chooses quantization, dtype, device and kernels from ``--quantize``, ``--dtype``, ``--device`` and ``--kernels``.

Each option may be ``auto``; what is chosen works on this machine.

========  ==========  ============================================================================================
quantize  activations notes
========  ==========  ============================================================================================
int8      float32     CPU. 8-bit weights per output row, 8-bit activations, exact integer sums: one numeric path at
                      every number of rows. By the ``native`` kernels where they can be built (activations with a scale
                      per 64 inputs), else by torch (activations in two digits per token).
nf4       bfloat16    CUDA, by bitsandbytes; on a CPU it works and is slow.
none      bfloat16    or float32 where the machine has no bfloat16 arithmetic.
========  ==========  ============================================================================================

``docs/benchmarks.md`` has the perplexities and speeds behind ``auto``.
"""

from __future__ import annotations

import importlib.util
import re

import torch

from graftwork.adapters.errors import ConfigurationError
from graftwork.server.engine.backends.cpu import library
from graftwork.server.engine.model.numerics import Kernels, Numerics, Quantize

#: Below this many parameters NF4 costs too much quality: perplexity 8.0 → 10.4 at 135 million.
MIN_PARAMETERS_FOR_NF4 = 1_000_000_000


def choose(*, quantize: str, dtype: str, device: str, kernels: str = "auto", num_parameters: int) -> Numerics:
    """Choose the numbers and kernels that a base is computed with.

    Args:
        quantize: ``auto``, ``int8``, ``nf4`` or ``none``.
        dtype: ``auto``, ``bfloat16`` or ``float32``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        kernels: ``auto``, ``native``, ``triton`` or ``torch``.
        num_parameters: Of the base: on CUDA ``auto`` quantizes large bases only.

    Raises:
        ConfigurationError: An option is unknown, or cannot be met on this device.
    """
    target = _choose_device(device)
    on_cpu = target.type == "cpu"
    if quantize == "auto":
        if on_cpu:
            chosen: Quantize = "int8" if has_int8_dot_products() else "none"
            reason = "int8 dot products in this CPU" if chosen == "int8" else "this CPU has no int8 dot products"
        else:
            chosen = "nf4" if num_parameters >= MIN_PARAMETERS_FOR_NF4 else "none"
            reason = f"{num_parameters / 1e6:.0f}M parameters on {target.type}"
    elif quantize in ("int8", "nf4", "none"):
        chosen, reason = quantize, "as asked"  # type: ignore[assignment]
    else:
        raise ConfigurationError(f"--quantize {quantize}: choose auto, nf4, int8 or none.")
    if chosen == "nf4" and importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigurationError("NF4 needs bitsandbytes: pip install 'graftwork[cuda]', or choose --quantize none.")
    if chosen == "int8" and not on_cpu:
        raise ConfigurationError("--quantize int8 is for CPUs; on CUDA choose nf4, none or auto.")
    if dtype == "auto":
        plain = torch.bfloat16 if not on_cpu or has_bfloat16() else torch.float32
        torch_dtype = torch.float32 if chosen == "int8" else plain
    elif dtype in ("bfloat16", "float32"):
        torch_dtype = getattr(torch, dtype)
    else:
        raise ConfigurationError(f"--dtype {dtype}: choose auto, bfloat16 or float32.")
    selected, note = _choose_kernels(kernels, chosen, torch_dtype, target)
    return Numerics(
        device=target,
        quantize=chosen,
        dtype=torch_dtype,
        kernels=selected,
        reason=f"{reason}; {note}" if note else reason,
    )


def _choose_kernels(
    requested: str, quantize: Quantize, dtype: torch.dtype, device: torch.device
) -> tuple[Kernels, str]:
    """The kernels, and why they are not the native ones where those were expected."""
    if requested not in ("auto", "native", "triton", "torch"):
        raise ConfigurationError(f"--kernels {requested}: choose auto, native, triton or torch.")
    if device.type == "cuda":
        return _choose_cuda_kernels(requested)
    if requested == "triton":
        raise ConfigurationError("--kernels triton is for CUDA; on a CPU choose native, torch or auto.")
    obstacle = "as asked" if requested == "torch" else library.unavailable_reason()
    if quantize != "int8" or dtype != torch.float32:
        if requested == "native":
            raise ConfigurationError("--kernels native is for --quantize int8 with --dtype float32 or auto.")
        return "torch", ""
    if obstacle is None:
        return "native", ""
    if requested == "native":
        raise ConfigurationError(f"--kernels native: {obstacle}.")
    return "torch", f"torch kernels, {obstacle}"


def _choose_cuda_kernels(requested: str) -> tuple[Kernels, str]:
    if requested == "native":
        raise ConfigurationError("--kernels native is for CPUs; on CUDA choose triton, torch or auto.")
    if requested == "torch":
        return "torch", "torch kernels, as asked"
    if importlib.util.find_spec("triton") is not None:
        return "triton", ""
    if requested == "triton":
        raise ConfigurationError("--kernels triton needs Triton: pip install triton, or choose --kernels torch.")
    return "torch", "torch kernels, Triton is not installed"


def _choose_device(requested: str) -> torch.device:
    if requested == "auto":
        requested = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", requested):
        raise ConfigurationError(f"--device {requested}: choose auto, cpu, cuda or cuda:1.")
    device = torch.device(requested)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(
            f"--device {requested}: torch finds {torch.cuda.device_count()} CUDA devices here. Choose cpu or auto."
        )
    return device


def has_int8_dot_products() -> bool:
    """Whether the CPU has VNNI or AMX: without them int8 GEMMs are slower than float32 ones."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))


def has_bfloat16() -> bool:
    """Whether the CPU computes bfloat16 in hardware: emulated, it is slower than float32."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
