"""The structure of an adapter without its numbers: grafted modules, replaced modules and the digest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class GraftSpec:
    """What an adapter adds to one module of the base: ``scale · B(A(x))``. Tensors are named by their keys."""

    name: str
    """As in ``BaseInfo.modules``."""
    kind: Literal["linear", "embedding"]
    rank: int
    scale: float
    """lora_alpha / rank (rsLoRA: / √rank), patterns applied."""
    a: str
    """(rank, in), for embeddings (rank, num)."""
    b: str
    """(out, rank), for embeddings (dim, rank)."""
    magnitude: str | None
    """DoRA, on linear modules: (out,)."""
    bias: str | None
    """lora_bias, on linear modules: (out,), added to B's output before ``scale``."""


@dataclass(frozen=True, kw_only=True)
class AdapterSpec:
    """The structure of an adapter without its numbers."""

    digest: str
    """``sha256:…`` over config and tensors."""
    num_bytes: int
    num_parameters: int
    """Of grafts and replaced modules."""
    rank: int
    """The largest."""
    grafts: tuple[GraftSpec, ...]
    """In the base's order of modules."""
    replaced: Mapping[str, Mapping[str, str]]
    """modules_to_save: module of the base -> {"weight" or "bias": tensor key}."""
    base_digest: str | None
    """The base that it was trained on; ``None`` for a plain PEFT folder, which does not say."""
    config: Mapping[str, Any]
    """adapter_config.json."""
    head: str | None = None
    """Of a reward model, the tensor of its scalar head: (1, hidden size). ``None``: it answers."""
    warnings: tuple[str, ...] = ()
    """What is taken and yet may not be what was meant, for whoever pushes it."""
