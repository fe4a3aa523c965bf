"""Reads the tensors of an adapter's safetensors file in parts, without torch: memory stays small for any size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from graftwork.adapters.errors import InvalidAdapter
from graftwork.adapters.names import escaped
from graftwork.adapters.peft_format.files import open_regular
from graftwork.adapters.storage.safetensors_header import TensorEntry, read_header

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


class TensorFile:
    """An open safetensors file; a context manager.

    Args:
        path: The file.
        max_header_bytes: The largest header.

    Attributes:
        name: The file's name.
        num_bytes: Its size.
        tensors: The entries of its header, by name.

    Raises:
        InvalidAdapter: It is no valid safetensors file; the message names the file and tensor.
    """

    def __init__(self, path: Path, *, max_header_bytes: int) -> None:
        self.name = path.name
        self._file: BinaryIO = open_regular(path)
        try:
            self.num_bytes = self._file.seek(0, 2)
            self.tensors: Mapping[str, TensorEntry] = read_header(
                self._file, name=self.name, max_header_bytes=max_header_bytes, dtypes=tuple(_DTYPES)
            )
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
        """Pass every byte of the file to ``update``, in order.

        Raises:
            InvalidAdapter: A number is NaN or infinite.
        """
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
        """Rows ``first`` to ``last`` (exclusive) of a tensor's first dimension, as float32 [rows, columns].

        Raises:
            InvalidAdapter: The file changed meanwhile.
        """
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

    def _wrong(self, what: str) -> InvalidAdapter:
        return InvalidAdapter(f"{self.name} {what}.", param=self.name)


def same_numbers(file: TensorFile, name: str, other: TensorFile, other_name: str) -> bool:
    """Whether tensor ``name`` equals tensor ``other_name``, rounded to the dtype of ``name``."""
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


def _as_float32(raw: bytes, dtype: str) -> Floats:
    if dtype == "F32":
        return np.frombuffer(raw, "<f4")
    if dtype == "F16":
        return np.frombuffer(raw, "<f2").astype(np.float32)
    return (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")


def _rounded(numbers: Floats, dtype: str) -> Floats:
    """float32 ``numbers`` as they are after saving them in ``dtype``: to nearest, ties to even."""
    if dtype == "F32":
        return numbers
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return numbers.astype(np.float16).astype(np.float32)
    bits = numbers.view("<u4")
    rounded: Floats = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF_0000).view("<f4")
    return rounded
