"""The header of a safetensors file, parsed strictly: where each tensor is; for adapters and bases alike.

::

    8 bytes: length of the header (little endian) | header: JSON | data: the tensors' bytes, end to end

The length of the header is checked before it is read. Every tensor must have a known dtype, a plausible shape, and
bytes that are inside the file, of the right number, and neither shared nor left over. The format is described at
https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from graftwork.adapters.errors import InvalidAdapter
from graftwork.adapters.names import escaped
from graftwork.adapters.storage.strict_json import parse_object

# fmt: off
DTYPE_BITS: Final[Mapping[str, int]] = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}
"""Bits of one element, for every dtype of the format."""
# fmt: on

_MAX_DIMENSIONS = 8
_MAX_SIZE = 1 << 40  # of one dimension; the bytes must be there, this only keeps the products small


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """One tensor of a file. Its bytes are ``start`` to ``end`` (exclusive) of the file."""

    name: str
    dtype: str
    """A key of `DTYPE_BITS`."""
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def num_elements(self) -> int:
        """The product of its shape."""
        return math.prod(self.shape)


def read_header(
    file: BinaryIO,
    *,
    name: str,
    max_header_bytes: int,
    dtypes: tuple[str, ...] = tuple(DTYPE_BITS),
    allow_empty: bool = False,
) -> dict[str, TensorEntry]:
    """Parse the header of a safetensors file.

    Args:
        file: Open for reading; its position afterwards is undefined.
        name: The file's name, with which messages begin.
        max_header_bytes: The largest header.
        dtypes: The dtypes that its tensors may have.
        allow_empty: Whether a tensor may have no elements.

    Returns:
        The tensors by name, in the order of their bytes.

    Raises:
        InvalidAdapter: The file is not a complete safetensors file of such tensors.
    """

    def wrong(what: str) -> InvalidAdapter:
        return InvalidAdapter(f"{name} {what}.", param=name)

    def entry_of(tensor: str, entry: Any) -> TensorEntry:
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise wrong(f"describes tensor {escaped(tensor)} by other than dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in dtypes:
            wanted = f"{', '.join(dtypes[:-1])} or {dtypes[-1]}"
            raise wrong(f"has tensor {escaped(tensor)} in {escaped(dtype)}: save it as {wanted}")
        if not _are_sizes(shape, least=0 if allow_empty else 1) or len(shape) > _MAX_DIMENSIONS:
            raise wrong(f"gives tensor {escaped(tensor)} the shape {escaped(shape)}")
        if not _are_sizes(offsets, least=0) or len(offsets) != 2:
            raise wrong(f"gives tensor {escaped(tensor)} the data_offsets {escaped(offsets)}")
        start, end = data_start + offsets[0], data_start + offsets[1]
        num_bytes = -(-math.prod(shape) * DTYPE_BITS[dtype] // 8)
        if end - start != num_bytes:
            raise wrong(f"gives tensor {escaped(tensor)} {end - start} bytes, but {dtype} {shape} takes {num_bytes}")
        if end > file_bytes:
            raise wrong(f"ends inside tensor {escaped(tensor)}: it was cut off; push it again")
        return TensorEntry(name=tensor, dtype=dtype, shape=tuple(shape), start=start, end=end)

    file_bytes = file.seek(0, 2)
    file.seek(0)
    prefix = file.read(8)
    if len(prefix) < 8:
        raise wrong(f"has {file_bytes} bytes, too few for a safetensors file: save the adapter again")
    header_bytes = int.from_bytes(prefix, "little")
    if header_bytes > max_header_bytes:
        raise wrong(
            f"says its header has {header_bytes} bytes, and at most {max_header_bytes} are allowed: "
            "it is no safetensors file, or has far too many tensors"
        )
    raw = file.read(header_bytes)
    if len(raw) != header_bytes:
        raise wrong("ends inside its header: it was cut off; push it again")
    header = parse_object(raw, what=f"the header of {name}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise wrong("has a __metadata__ that does not map names to texts")
    next_start = data_start = 8 + header_bytes
    tensors = [entry_of(tensor, entry) for tensor, entry in header.items()]
    # An empty tensor comes before the one that begins at the same byte.
    tensors.sort(key=lambda tensor: (tensor.start, tensor.num_elements > 0))
    for tensor in tensors:
        if tensor.start != next_start:
            raise wrong(
                f"gives tensor {escaped(tensor.name)} bytes from {tensor.start} on where {next_start} is next: "
                "tensors overlap or leave bytes unused; save the adapter again"
            )
        next_start = tensor.end
    if next_start != file_bytes:
        raise wrong(f"has {file_bytes} bytes but its tensors end at {next_start}: it was cut off or added to")
    return {tensor.name: tensor for tensor in tensors}


def _are_sizes(value: Any, *, least: int) -> bool:
    return isinstance(value, list) and all(type(size) is int and least <= size <= _MAX_SIZE for size in value)
