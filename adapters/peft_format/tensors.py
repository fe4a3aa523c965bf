"""A safetensors file that a stranger wrote: its header read strictly, its numbers looked at without torch.

::

    8 bytes: length of the header (little endian) | header: JSON | data: the tensors' bytes, end to end

The header is bounded before it is read, and every tensor must be what it says: a known floating dtype, a sane shape,
bytes that are inside the file, of the right number, and neither shared nor left over. Numbers are read piece by piece,
so memory stays small whatever the file weighs.

This file does not know what the tensors mean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from graftwork.adapters.errors import InvalidAdapter
from graftwork.adapters.peft_format.files import escaped, open_regular

_MAX_DIMENSIONS = 8
_MAX_NESTING = 20  # objects and lists in each other
_MAX_SIZE = 1 << 40  # of one dimension; the bytes must be there, this only keeps the products small
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True, kw_only=True)
class _DType:
    words: np.dtype[Any]  # the unsigned integers that its bits are read as
    exponent: int  # when these bits are all ones, the number is NaN or infinite


_DTYPES = {
    "F32": _DType(words=np.dtype("<u4"), exponent=0x7F80_0000),
    "F16": _DType(words=np.dtype("<u2"), exponent=0x7C00),
    "BF16": _DType(words=np.dtype("<u2"), exponent=0x7F80),
}

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """One tensor of the file. ``start`` and ``end`` are its bytes' place in the file."""

    name: str
    dtype: str  # F32, F16 or BF16
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


class TensorFile:
    """An open safetensors file, a context manager. What is wrong with it is InvalidAdapter, naming file and tensor."""

    def __init__(self, path: Path, *, max_header_bytes: int) -> None:
        self.name = path.name
        self._file: BinaryIO = open_regular(path)
        try:
            self.num_bytes = self._file.seek(0, 2)
            self.tensors: Mapping[str, TensorEntry] = self._read_header(max_header_bytes)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def hash_and_check_finite(self, update: Callable[[bytes], object]) -> None:
        """Hand every byte of the file to ``update``, in order, and see that no number is NaN or infinite."""
        tensors = list(self.tensors.values())
        self._file.seek(0)
        update(self._file.read(tensors[0].start if tensors else self.num_bytes))
        for tensor in tensors:
            dtype = _DTYPES[tensor.dtype]
            for chunk in self._chunks(tensor):
                update(chunk)
                if bool((np.frombuffer(chunk, dtype.words) & dtype.exponent == dtype.exponent).any()):
                    raise InvalidAdapter(
                        f"{self.name}: tensor {escaped(tensor.name)} holds NaN or infinite numbers: "
                        "training diverged or the file is damaged; push a checkpoint from before that.",
                        param=self.name,
                    )

    def read(self, tensor: TensorEntry, first: int = 0, last: int | None = None) -> Floats:
        """Rows ``first`` to ``last`` of a tensor (its first dimension) as float32 of shape (rows, columns)."""
        last = tensor.shape[0] if last is None else last
        columns = tensor.num_elements // tensor.shape[0]
        row_bytes = columns * _DTYPES[tensor.dtype].words.itemsize
        self._file.seek(tensor.start + first * row_bytes)
        return _as_float32(self._take((last - first) * row_bytes), tensor.dtype).reshape(-1, columns)

    def _chunks(self, tensor: TensorEntry) -> Iterator[bytes]:
        self._file.seek(tensor.start)
        for start in range(tensor.start, tensor.end, _CHUNK_BYTES):
            yield self._take(min(_CHUNK_BYTES, tensor.end - start))

    def _take(self, num_bytes: int) -> bytes:
        taken = self._file.read(num_bytes)
        if len(taken) != num_bytes:
            raise self._wrong("changed while it was read: push it again")
        return taken

    def _read_header(self, max_header_bytes: int) -> Mapping[str, TensorEntry]:
        self._file.seek(0)
        prefix = self._file.read(8)
        if len(prefix) < 8:
            raise self._wrong(f"has {self.num_bytes} bytes, too few for a safetensors file: save the adapter again")
        header_bytes = int.from_bytes(prefix, "little")
        if header_bytes > max_header_bytes:
            raise self._wrong(
                f"says its header has {header_bytes} bytes, and at most {max_header_bytes} are allowed: "
                "it is no safetensors file, or has far too many tensors"
            )
        raw = self._file.read(header_bytes)
        if len(raw) != header_bytes:
            raise self._wrong("ends inside its header: it was cut off; push it again")
        header = parse_object(raw, what=f"the header of {self.name}")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise self._wrong("has a __metadata__ that does not map names to texts")
        start = 8 + header_bytes
        tensors = sorted(
            (self._tensor(name, entry, start) for name, entry in header.items()), key=lambda tensor: tensor.start
        )
        for tensor in tensors:
            if tensor.start != start:
                raise self._wrong(
                    f"gives tensor {escaped(tensor.name)} bytes from {tensor.start} on where {start} is next: "
                    "tensors overlap or leave bytes unused; save the adapter again"
                )
            start = tensor.end
        if start != self.num_bytes:
            raise self._wrong(f"has {self.num_bytes} bytes but its tensors end at {start}: it was cut off or added to")
        return {tensor.name: tensor for tensor in tensors}

    def _tensor(self, name: str, entry: Any, data_start: int) -> TensorEntry:
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise self._wrong(f"describes tensor {escaped(name)} by other than dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise self._wrong(f"has tensor {escaped(name)} in {escaped(dtype)}: save it as F32, F16 or BF16")
        if not _is_sizes(shape, least=1) or len(shape) > _MAX_DIMENSIONS:
            raise self._wrong(f"gives tensor {escaped(name)} the shape {escaped(shape)}")
        if not _is_sizes(offsets, least=0) or len(offsets) != 2:
            raise self._wrong(f"gives tensor {escaped(name)} the data_offsets {escaped(offsets)}")
        num_bytes = math.prod(shape) * _DTYPES[dtype].words.itemsize
        if offsets[1] - offsets[0] != num_bytes:
            raise self._wrong(
                f"gives tensor {escaped(name)} {offsets[1] - offsets[0]} bytes, but {dtype} {shape} takes {num_bytes}"
            )
        start, end = data_start + offsets[0], data_start + offsets[1]
        if end > self.num_bytes:
            raise self._wrong(f"ends inside tensor {escaped(name)}: it was cut off; push it again")
        return TensorEntry(name=name, dtype=dtype, shape=tuple(shape), start=start, end=end)

    def _wrong(self, what: str) -> InvalidAdapter:
        return InvalidAdapter(f"{self.name} {what}.", param=self.name)


def same_numbers(file: TensorFile, name: str, other: TensorFile, other_name: str) -> bool:
    """Whether ``name`` holds the numbers of ``other_name``, to the precision that the dtype of ``name`` has."""
    tensor, reference = file.tensors[name], other.tensors[other_name]
    if tensor.shape != reference.shape:
        return False
    step = max(1, _CHUNK_BYTES * tensor.shape[0] // (4 * tensor.num_elements))
    for first in range(0, tensor.shape[0], step):
        last = min(first + step, tensor.shape[0])
        expected = _rounded(other.read(reference, first, last), tensor.dtype)
        if not np.array_equal(file.read(tensor, first, last), expected):
            return False
    return True


def parse_object(raw: bytes, *, what: str) -> dict[str, Any]:
    """Parse a JSON object, strictly: UTF-8, no name twice, no NaN, little nesting. Errors name ``what`` it is."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        parsed: dict[str, Any] = {}
        for name, value in items:
            if name in parsed:
                raise InvalidAdapter(f"{what} has {escaped(name)} twice, and nothing says which holds.")
            parsed[name] = value
        return parsed

    def constant(text: str) -> Any:
        raise InvalidAdapter(f"{what} has {text}, which is no JSON number.")

    def finite(text: str) -> float:
        return number if math.isfinite(number := float(text)) else constant(escaped(text))

    try:
        parsed = json.loads(raw.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant, parse_float=finite)
        if (
            b"\\ud" in raw.lower()
        ):  # halves of characters, which no database or answer can hold unless they make a whole
            json.dumps(parsed, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise InvalidAdapter(f"{what} is nested too deeply.") from None
    except ValueError as error:  # not UTF-8, not JSON, or an integer of thousands of digits
        raise InvalidAdapter(f"{what} is not JSON in UTF-8: {error}.") from None
    if not isinstance(parsed, dict):
        raise InvalidAdapter(f"{what} is not a JSON object.")
    level: list[Any] = [parsed]
    for _ in range(_MAX_NESTING):
        level = [
            child
            for container in level
            for child in (container.values() if isinstance(container, dict) else container)
            if isinstance(child, dict | list)
        ]
    if level:
        raise InvalidAdapter(f"{what} is nested too deeply.")
    return parsed


def _is_sizes(value: Any, *, least: int) -> bool:
    return isinstance(value, list) and all(type(size) is int and least <= size <= _MAX_SIZE for size in value)


def _as_float32(raw: bytes, dtype: str) -> Floats:
    if dtype == "F32":
        return np.frombuffer(raw, "<f4")
    if dtype == "F16":
        return np.frombuffer(raw, "<f2").astype(np.float32)
    return (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")


def _rounded(numbers: Floats, dtype: str) -> Floats:
    """What is left of float32 ``numbers`` after saving them in ``dtype``, to the nearest, ties to even."""
    if dtype == "F32":
        return numbers
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return numbers.astype(np.float16).astype(np.float32)
    bits = numbers.view("<u4")
    kept: Floats = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF_0000).view("<f4")
    return kept
