"""An adapter in host memory, laid out as each layer of the model takes it: loading it is a copy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from graftwork.server.engine.lora.host_adapter import EmbeddingGraft, LinearGraft


@dataclass(slots=True)
class LinearExtras:
    """What an adapter does to a linear layer beside B·A.

    Attributes:
        column_scale: [out]: DoRA's magnitude over the norm of the adapted weight.
        bias: [out], added.
        replacement: Weight [out, in] and bias that are used instead of the base's.
    """

    column_scale: Tensor | None = None
    bias: Tensor | None = None
    replacement: tuple[Tensor, Tensor | None] | None = None


class Packed(Protocol):
    """A ``LinearMethod``'s own layout of an adapter's grafts."""

    @property
    def num_bytes(self) -> int:
        """Size in host memory."""


@dataclass(frozen=True, slots=True)
class PlainGrafts:
    """Grafts by member, as they were read."""

    grafts: Mapping[int, LinearGraft]

    @property
    def num_bytes(self) -> int:
        """Size of A and B."""
        return sum(graft.a.nbytes + graft.b.nbytes for graft in self.grafts.values())


@dataclass(frozen=True, slots=True)
class PackedMergedLinear:
    """An adapter's part in one ``MergedLinear``; ``extras`` are by member."""

    grafts: Packed | None
    extras: dict[int, LinearExtras]

    @property
    def num_bytes(self) -> int:
        """Size of the grafts and of replaced weights."""
        own = sum(e.replacement[0].nbytes for e in self.extras.values() if e.replacement is not None)
        return own + (self.grafts.num_bytes if self.grafts is not None else 0)


@dataclass(frozen=True, slots=True)
class PackedModule:
    """An adapter's part in one ``GraftedModule``: a LoRA, or a module that is used instead of the base's."""

    embedding: EmbeddingGraft | None
    replacement: nn.Module | None

    @property
    def num_bytes(self) -> int:
        """Size of its tensors."""
        own = list(self.replacement.parameters(recurse=False)) if self.replacement is not None else []
        return sum(t.nbytes for t in own) + (self.embedding.a.nbytes + self.embedding.b.nbytes if self.embedding else 0)


@dataclass(frozen=True, slots=True)
class PackedAdapter:
    """An adapter in host memory, packed for every layer that it may touch.

    Attributes:
        digest: Its identity.
        num_pages: Pages of the bank that it needs.
        names: Modules that it touches.
        is_special: Whether it does more there than to add B·A to linear layers.
        parts: In the order of ``Grafts``'s layers; ``None`` for a layer that it does not touch.
    """

    digest: str
    num_pages: int
    names: frozenset[str]
    is_special: bool
    parts: tuple[Any, ...]

    @property
    def num_bytes(self) -> int:
        """Size in host memory."""
        return sum(part.num_bytes for part in self.parts if part is not None)
