"""An adapter's tensors in host memory: ranks padded to pages, scales folded into B.

They are read from a PEFT folder that was checked before.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from graftwork.adapters.errors import InvalidAdapter, TooLarge
from graftwork.adapters.peft_format.folder import digest_of

if TYPE_CHECKING:
    from graftwork.adapters.peft_format.limits import AdapterLimits
    from graftwork.adapters.peft_format.spec import AdapterSpec

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

#: Rank rows a page of the bank holds. Ranks are padded to whole pages with zeros.
RANK_PAGE = 16


@dataclass(frozen=True, kw_only=True)
class LinearGraft:
    """A linear layer's LoRA: y += B·(A·x).

    Attributes:
        a: [pages, RANK_PAGE, in].
        b: [pages, RANK_PAGE, out], the scale folded in.
        magnitude: [out] of DoRA.
        bias: [out], the scale folded in.
    """

    a: Tensor
    b: Tensor
    magnitude: Tensor | None
    bias: Tensor | None


@dataclass(frozen=True, kw_only=True)
class EmbeddingGraft:
    """An embedding's LoRA: e += B·A[:, token].

    Attributes:
        a: [vocabulary, rank].
        b: [rank, dim], the scale folded in.
    """

    a: Tensor
    b: Tensor


@dataclass(frozen=True, kw_only=True)
class HostAdapter:
    """An adapter in host memory.

    Attributes:
        digest: Its identity.
        num_pages: Pages of the bank that its largest rank needs, one at least.
        num_bytes: Size of its tensors.
        linears: By module name.
        embeddings: By module name.
        replaced: Whole modules (PEFT's modules_to_save): module → parameter → tensor.
    """

    digest: str
    num_pages: int
    num_bytes: int
    linears: Mapping[str, LinearGraft]
    embeddings: Mapping[str, EmbeddingGraft]
    replaced: Mapping[str, Mapping[str, Tensor]]

    @property
    def is_special(self) -> bool:
        """It does more than to add B·A to linear layers: a field that is not among PLAIN_FIELDS holds something."""
        return _has_more(self) or any(map(_has_more, self.linears.values()))


PLAIN_FIELDS = frozenset({"digest", "num_pages", "num_bytes", "linears", "a", "b"})
"""Fields of an adapter and of its linear layers that the fast path takes into account."""


def _has_more(part: HostAdapter | LinearGraft) -> bool:
    """Whether a field holds anything that is not among PLAIN_FIELDS."""
    values: list[Any] = [getattr(part, field.name) for field in fields(part) if field.name not in PLAIN_FIELDS]
    return any(
        len(value) > 0 if isinstance(value, Mapping) else value is not None and value is not False for value in values
    )


def num_pages(rank: int) -> int:
    """How many pages a LoRA of this rank takes."""
    return -(-rank // RANK_PAGE)


def read_artifact(
    folder: Path, digest: str, spec_of: Callable[[Path], AdapterSpec], limits: AdapterLimits, dtype: torch.dtype
) -> HostAdapter:
    """Read a published adapter, if its files are still those that were pushed.

    Args:
        folder: The artifact.
        digest: What it is known by.
        spec_of: Reads its structure, or has it from before.
        limits: The largest sizes.
        dtype: Of the bank.

    Raises:
        InvalidAdapter: Its files are not those of ``digest``: artifacts never change, but disks do.
    """
    try:
        if digest_of(folder, limits) == digest:
            return read(folder, spec_of(folder), dtype)
    except (InvalidAdapter, TooLarge):
        pass
    raise InvalidAdapter("its files changed on the disk. Push the same adapter again: that puts them right")


def read(folder: Path, spec: AdapterSpec, dtype: torch.dtype) -> HostAdapter:
    """Read the tensors of an adapter whose folder was checked.

    Args:
        folder: Holds ``adapter_model.safetensors``.
        spec: Which tensors it has, and their scales.
        dtype: Of the bank. Scales are folded in in float32 before the conversion.
    """
    linears: dict[str, LinearGraft] = {}
    embeddings: dict[str, EmbeddingGraft] = {}
    tensors = _tensors(folder / "adapter_model.safetensors")

    def get(key: str) -> Tensor:
        return tensors[key].to(torch.float32, copy=True)

    for graft in spec.grafts:
        a, b = get(graft.a), get(graft.b)
        if graft.kind == "embedding":
            embeddings[graft.name] = EmbeddingGraft(a=a.t().contiguous().to(dtype), b=(b.t() * graft.scale).to(dtype))
            continue
        linears[graft.name] = LinearGraft(
            a=_paged(a, dtype),
            b=_paged(b.t() * graft.scale, dtype),
            magnitude=None if graft.magnitude is None else get(graft.magnitude).reshape(-1),
            bias=None if graft.bias is None else get(graft.bias) * graft.scale,
        )
    replaced = {
        module: {name: get(key).to(dtype) for name, key in parameters.items()}
        for module, parameters in spec.replaced.items()
    }
    stored = [t for g in linears.values() for t in (g.a, g.b)] + [t for g in embeddings.values() for t in (g.a, g.b)]
    stored += [t for parameters in replaced.values() for t in parameters.values()]
    return HostAdapter(
        digest=spec.digest,
        num_pages=max((num_pages(g.rank) for g in spec.grafts if g.kind == "linear"), default=1),
        num_bytes=sum(t.nbytes for t in stored),
        linears=linears,
        embeddings=embeddings,
        replaced=replaced,
    )


def _tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checked safetensors file, as views of its bytes.

    This runs beside the steps and shares the GIL with them: safetensors' own reader takes three times as long.
    """
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    numbers = torch.frombuffer(content, dtype=torch.uint8)
    tensors = {}
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        dtype, (first, last) = _DTYPES[entry["dtype"]], entry["data_offsets"]
        part = numbers[start + first : start + last]
        if part.storage_offset() % dtype.itemsize:
            part = part.clone()
        tensors[key] = part.view(dtype).view(entry["shape"])
    return tensors


def _paged(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Split rank rows [rank, n] into pages [pages, RANK_PAGE, n], the last one padded with zeros."""
    rank, width = rows.shape
    pages = torch.zeros(num_pages(rank) * RANK_PAGE, width, dtype=dtype)
    pages[:rank] = rows
    return pages.view(-1, RANK_PAGE, width)
