"""A step's numbers on their way to the device: many lists, one copy.

A copy costs the host about as much for three numbers as for a thousand, and one from pinned memory does not wait for
the device. Every list begins at a multiple of 16 bytes: Triton compiles a kernel anew for pointers that do not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def use_device(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Makes ``device`` the one that Triton launches on: every thread has its own idea of which that is."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def upload(lists: Mapping[str, Sequence[int]], device: torch.device) -> dict[str, Tensor]:
    """Each list as an int64 tensor on ``device``; all are views of one."""
    sizes = {name: len(values) for name, values in lists.items()}
    host = _pinned(_laid_out(lists, sizes), device)
    return _views(host.to(device, non_blocking=True), sizes)


class StaticInputs:
    """Tensors of fixed places and sizes on the device, refilled for each step: what a captured graph reads."""

    def __init__(self, sizes: Mapping[str, int], device: torch.device) -> None:
        self._device = device
        self._sizes = dict(sizes)
        self._all = torch.zeros(sum(map(_padded, sizes.values())), dtype=torch.int64, device=device)
        self._views = _views(self._all, sizes)

    def __getitem__(self, name: str) -> Tensor:
        return self._views[name]

    def fill(self, lists: Mapping[str, Sequence[int]]) -> None:
        """Put every list at the beginning of its place, zeros behind it. What is not named is all zeros.

        Raises:
            ValueError: a list is longer than its place, or has none.
        """
        if too_long := [name for name, values in lists.items() if len(values) > self._sizes.get(name, 0)]:
            raise ValueError(f"no room for {', '.join(too_long)}")
        self._all.copy_(_pinned(_laid_out(lists, self._sizes), self._device), non_blocking=True)


def _padded(size: int) -> int:
    """Numbers of 8 bytes: an even count is a multiple of 16 bytes."""
    return size + size % 2


def _laid_out(lists: Mapping[str, Sequence[int]], sizes: Mapping[str, int]) -> list[int]:
    values: list[int] = []
    for name, size in sizes.items():
        given = lists.get(name, ())
        values += given
        values += [0] * (_padded(size) - len(given))
    return values


def _views(everything: Tensor, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    parts = torch.split(everything, [_padded(size) for size in sizes.values()])
    return {name: part[: sizes[name]] for name, part in zip(sizes, parts, strict=True)}


def _pinned(values: list[int], device: torch.device) -> Tensor:
    """On the host. Torch keeps pinned memory until the copy out of it is done, and hands it out again after that."""
    return torch.tensor(values, dtype=torch.int64, pin_memory=device.type == "cuda")
