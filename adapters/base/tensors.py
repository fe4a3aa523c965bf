"""The tensors of a base in its safetensors files. Reads headers only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from graftwork.adapters.errors import ConfigurationError, InvalidAdapter
from graftwork.adapters.storage.safetensors_header import TensorEntry, read_header

MAX_HEADER_BYTES: Final = 100 << 20
"""The largest header of one file; the limit of safetensors' own reader is 100 MB."""


@dataclass(frozen=True, kw_only=True)
class TensorLocation(TensorEntry):
    """A tensor's entry, and the file that it is in."""

    file: Path


def tensors_of(weights: Sequence[Path]) -> list[TensorLocation]:
    """The tensors of all files, by name.

    Raises:
        ConfigurationError: A file is incomplete.
    """
    tensors = [TensorLocation(**vars(tensor), file=file) for file in weights for tensor in _entries(file)]
    return sorted(tensors, key=lambda tensor: tensor.name)


def _entries(file: Path) -> list[TensorEntry]:
    with file.open("rb") as opened:
        try:
            header = read_header(opened, name=file.name, max_header_bytes=MAX_HEADER_BYTES, allow_empty=True)
        except InvalidAdapter as error:
            raise ConfigurationError(f"{file} is not a whole safetensors file. Fetch the base again.") from error
    return list(header.values())


_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


def dtype_on_disk(tensors: Sequence[TensorLocation]) -> str:
    """The dtype of most of the bytes, by torch's name.

    Raises:
        ConfigurationError: It is none of float16, bfloat16, float32 and float64.
    """
    sizes: dict[str, int] = {}
    for tensor in tensors:
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.end - tensor.start
    most = max(sizes, key=lambda dtype: sizes[dtype], default="none")
    if most not in _DTYPES:
        raise ConfigurationError(f"This base's weights are of type {most}; give one in bfloat16, float16 or float32.")
    return _DTYPES[most]
