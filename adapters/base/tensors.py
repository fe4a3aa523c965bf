"""Where the tensors of a base lie in its safetensors files. Reads headers only."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from graftwork.adapters.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class TensorLocation:
    """Where a tensor's bytes lie."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    begin: int
    end: int


def tensors_of(weights: Sequence[Path]) -> list[TensorLocation]:
    """Every tensor of every file, by name. Reads headers only."""
    tensors = [tensor for file in weights for tensor in _header(file)]
    return sorted(tensors, key=lambda tensor: tensor.name)


def _header(file: Path) -> Iterator[TensorLocation]:
    size = file.stat().st_size
    broken = ConfigurationError(f"{file} is not a whole safetensors file. Fetch the base again.")
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > size - 8:
            raise broken
        try:
            entries = json.loads(opened.read(length))
            entries.pop("__metadata__", None)
            for name, entry in entries.items():
                begin, end = (8 + length + offset for offset in entry["data_offsets"])
                if not 8 + length <= begin <= end <= size:
                    raise broken
                yield TensorLocation(
                    name=name, dtype=entry["dtype"], shape=tuple(entry["shape"]), file=file, begin=begin, end=end
                )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise broken from error


_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


def dtype_on_disk(tensors: Sequence[TensorLocation]) -> str:
    """The type that most of the bytes have."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.end - tensor.begin
    most = max(sizes, key=lambda dtype: sizes[dtype], default="none")
    if most not in _DTYPES:
        raise ConfigurationError(f"This base's weights are of type {most}; give one in bfloat16, float16 or float32.")
    return _DTYPES[most]
