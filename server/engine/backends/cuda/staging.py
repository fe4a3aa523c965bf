"""Copies a step's index lists to the device: many lists, one copy.

A copy costs the host about as much for three numbers as for a thousand, and one from pinned memory is asynchronous.
Every list begins at a multiple of 16 bytes: Triton compiles a kernel anew for pointers that do not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def use_device(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """A context in which Triton launches on ``device``: the current device is set per thread."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def upload(lists: Mapping[str, Sequence[int]], device: torch.device) -> dict[str, Tensor]:
    """Copy each list to ``device`` as an int64 tensor; all are views of one allocation."""
    sizes = {name: len(values) for name, values in lists.items()}
    host = _pinned(_laid_out(lists, sizes), device)
    return _views(host.to(device, non_blocking=True), sizes)


class StaticInputs:
    """int64 tensors at fixed addresses on the device, refilled for each step: the inputs of captured graphs.

    ``sizes`` is the length of each tensor, by name.
    """

    def __init__(self, sizes: Mapping[str, int], device: torch.device) -> None:
        self._device = device
        self._sizes = dict(sizes)
        self._all = torch.zeros(sum(map(_padded, sizes.values())), dtype=torch.int64, device=device)
        self._views = _views(self._all, sizes)

    def __getitem__(self, name: str) -> Tensor:
        return self._views[name]

    def fill(self, lists: Mapping[str, Sequence[int]]) -> None:
        """Copy every list to the beginning of its tensor and fill the rest with zeros, also tensors that are not named.

        Raises:
            ValueError: A list is longer than its tensor, or its name is unknown.
        """
        if too_long := [name for name, values in lists.items() if len(values) > self._sizes.get(name, 0)]:
            raise ValueError(f"no room for {', '.join(too_long)}")
        self._all.copy_(_pinned(_laid_out(lists, self._sizes), self._device), non_blocking=True)


def _padded(size: int) -> int:
    """``size`` rounded up to an even number: two numbers of 8 bytes are 16 bytes."""
    return size + size % 2


def _laid_out(lists: Mapping[str, Sequence[int]], sizes: Mapping[str, int]) -> list[int]:
    """All lists one behind another, each filled with zeros to its padded size."""
    values: list[int] = []
    for name, size in sizes.items():
        given = lists.get(name, ())
        values += given
        values += [0] * (_padded(size) - len(given))
    return values


def _views(packed: Tensor, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    parts = torch.split(packed, [_padded(size) for size in sizes.values()])
    return {name: part[: sizes[name]] for name, part in zip(sizes, parts, strict=True)}


def _pinned(values: list[int], device: torch.device) -> Tensor:
    """``values`` on the host, pinned for CUDA. Torch does not reuse pinned memory before copies from it are done."""
    return torch.tensor(values, dtype=torch.int64, pin_memory=device.type == "cuda")
