"""Settings of the engine: quantization, device, memory and batch sizes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What the engine may use of the machine, and how it computes.

    Attributes:
        quantize: ``auto``, ``int8``, ``nf4`` or ``none``; this and the next three as in ``backend_selector.choose``.
        dtype: ``auto``, ``bfloat16`` or ``float32``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        kernels: ``auto``, ``native``, ``triton`` or ``torch``.
        kernel_cache: Where built CPU kernels are stored.
        num_slots: Adapters of rank 16 that fit on the device; one of a larger rank takes several slots.
        max_sequences: The most sequences that run at once.
        max_length: The most tokens of a sequence; ``None``: what the base was made for, up to 8192.
        cache_bytes: Size of the key-value cache; ``None``: a quarter of the memory, 4 GiB at most; on a GPU 80 % of
            what is free beside ``reserved_bytes``.
        memory_share: The part of the memory that is this engine's, where others run beside it.
        reserved_bytes: Of the GPU's memory, for other processes.
        host_bytes: Host memory for adapters that were fetched and are not on the device.
        step_tokens: The most prompt tokens of a step.
        prefix_cache: Whether keys and values of ended sequences are used again.
        num_threads: Of torch and the CPU kernels; ``None``: torch's default.
    """

    quantize: str = "auto"
    dtype: str = "auto"
    device: str = "auto"
    kernels: str = "auto"
    kernel_cache: Path = Path.home() / ".cache" / "graftwork"
    num_slots: int = 16
    max_sequences: int = 32
    max_length: int | None = None
    cache_bytes: int | None = None
    memory_share: float = 1.0
    reserved_bytes: int = 0
    host_bytes: int = 2 * GIB
    step_tokens: int = 256
    prefix_cache: bool = True
    num_threads: int | None = None
