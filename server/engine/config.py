"""Settings of the engine: quantization, device, memory and batch sizes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How much of the machine the engine may take.

    ``num_slots`` rank-16 adapters on the device; ``max_sequences`` running at once, each at most ``max_length`` tokens
    (``None``: what the base was made for, up to 8192); ``cache_bytes`` of key-value cache (``None``: a quarter of the
    memory, 4 GiB at most; on a card 80 % of what is free beside ``reserved_bytes`` for others); ``host_bytes`` for
    adapters fetched but not on the device; ``step_tokens`` of prompt a step. ``prefix_cache``: what ended sequences
    leave in the cache serves others.
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
    reserved_bytes: int = 0
    host_bytes: int = 2 * GIB
    step_tokens: int = 256
    prefix_cache: bool = True
    num_threads: int | None = None
