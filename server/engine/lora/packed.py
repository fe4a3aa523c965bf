"""An adapter in host memory, laid out as each layer of the model takes it: putting it on the device is a copy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from graftwork.server.engine.lora.host_adapter import LinearGraft

if TYPE_CHECKING:
    pass
from typing import Any, Protocol

from torch import nn

from graftwork.server.engine.lora.host_adapter import EmbeddingGraft


@dataclass(slots=True)
class LinearExtras:
    """What an adapter does to a linear layer beside B·A: DoRA's column scale, a bias, or a whole other weight."""

    column_scale: Tensor | None = None
    bias: Tensor | None = None
    replacement: tuple[Tensor, Tensor | None] | None = None


class Packed(Protocol):
    @property
    def num_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class PlainGrafts:
    """Grafts as they were read."""

    grafts: Mapping[int, LinearGraft]

    @property
    def num_bytes(self) -> int:
        return sum(graft.a.nbytes + graft.b.nbytes for graft in self.grafts.values())


@dataclass(frozen=True, slots=True)
class PackedMergedLinear:
    """An adapter's part in one ``MergedLinear``."""

    grafts: Packed | None
    extras: dict[int, LinearExtras]

    @property
    def num_bytes(self) -> int:
        own = sum(e.replacement[0].nbytes for e in self.extras.values() if e.replacement is not None)
        return own + (self.grafts.num_bytes if self.grafts is not None else 0)


@dataclass(frozen=True, slots=True)
class PackedModule:
    """An adapter's part in one ``GraftedModule``."""

    embedding: EmbeddingGraft | None
    replacement: nn.Module | None

    @property
    def num_bytes(self) -> int:
        own = list(self.replacement.parameters(recurse=False)) if self.replacement is not None else []
        return sum(t.nbytes for t in own) + (self.embedding.a.nbytes + self.embedding.b.nbytes if self.embedding else 0)


@dataclass(frozen=True, slots=True)
class PackedAdapter:
    """An adapter in host memory as every place takes it: to load it is to copy. ``parts`` in the order of the places.

    ``names`` are the modules that it touches; ``is_special`` when it does more there than to add B·A.
    """

    digest: str
    num_pages: int
    names: frozenset[str]
    is_special: bool
    parts: tuple[Any, ...]

    @property
    def num_bytes(self) -> int:
        return sum(part.num_bytes for part in self.parts if part is not None)
