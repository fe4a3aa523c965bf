"""Descriptions of a base that need no loading."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ModuleShape:
    """One module of the base that an adapter may touch."""

    kind: Literal["linear", "embedding", "other"]
    """``other``: norms and the like, which can only be replaced as a whole."""
    shape: tuple[int, ...]
    """Of the weight: linear (out, in); embedding (num, dim); norm (dim,)."""
    bias: bool


@dataclass(frozen=True, kw_only=True)
class BaseInfo:
    """A base, described without loading it."""

    id: str
    """The id it is served under: the embedded base's own, a hub id, or a folder's name."""
    path: str
    """Local folder with config.json, safetensors and tokenizer.json."""
    digest: str
    """``sha256:…`` over tensors, tokenizer and chat template: before quantization, however the files are split."""
    architecture: str
    dtype: str
    """Of the weights on disk."""
    num_parameters: int
    vocab_size: int
    max_positions: int
    num_layers: int
    hidden_size: int
    eos_token_ids: tuple[int, ...]
    modules: Mapping[str, ModuleShape]
    """Full dotted names as in ``model.named_modules()``: the leaves that own parameters."""
    tied: tuple[tuple[str, str], ...]
    """Pairs of modules that share one weight: (which borrows, which owns)."""

    def to_json(self) -> str:
        """One line of JSON, for caches and other processes."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> BaseInfo:
        """The inverse of ``to_json``."""
        fields = json.loads(text)
        fields["eos_token_ids"] = tuple(fields["eos_token_ids"])
        fields["tied"] = tuple((borrower, owner) for borrower, owner in fields["tied"])
        fields["modules"] = {
            name: ModuleShape(kind=module["kind"], shape=tuple(module["shape"]), bias=module["bias"])
            for name, module in fields["modules"].items()
        }
        return cls(**fields)
