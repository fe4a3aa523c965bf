"""The threads and scratch memory of the CPU kernels, and a step's adapters in the layout that the kernels read."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from graftwork.server.engine.backends.cpu.interface import AdaptersFields, OpFields, SamplingFields, StepFields
from graftwork.server.engine.lora.plan import AdapterRun


class RowAdapters:
    """The bank's pages that each row of a step goes through, in the layout of the kernels.

    Attributes:
        first: [T + 1] int32. Row i uses ``pages[first[i] : first[i + 1]]``.
        pages: int32 page numbers, one row's after another's.
        fields: Pointers to both, for ``StepFields``.
    """

    def __init__(self, runs: Sequence[AdapterRun], num_rows: int) -> None:
        counts = [0] * num_rows
        pages: list[int] = []
        for run in runs:  # in the order of the rows
            length = run.stop - run.start
            counts[run.start : run.stop] = [len(run.pages)] * length
            pages += list(run.pages) * length
        self.first = torch.zeros(num_rows + 1, dtype=torch.int32)
        torch.cumsum(torch.tensor(counts, dtype=torch.int32), 0, out=self.first[1:])
        self.pages = torch.tensor(pages or [0], dtype=torch.int32)
        self.fields = AdaptersFields(self.first.data_ptr(), self.pages.data_ptr(), len(pages))


#: Outputs side by side in a register.
LANES = 16


class KernelContext:
    """A thread pool and scratch memory for the kernels. One thread at a time may call ``run``.

    Args:
        library: The kernels, as ``library.load`` returns them.
        num_threads: Threads of the pool.
    """

    def __init__(self, library: ctypes.CDLL, num_threads: int) -> None:
        self._library = library
        self._handle = library.graft_open(num_threads)
        self._newest: tuple[Sequence[AdapterRun], int, RowAdapters] | None = None

    def run(self, ops: ctypes.Array[OpFields], step: StepFields) -> None:
        """Run ``ops`` one after another over the step's rows. The GIL is released meanwhile."""
        self._library.graft_run(self._handle, ops, len(ops), ctypes.byref(step))

    def sample(self, logits: Tensor, samplings: ctypes.Array[SamplingFields]) -> list[int]:
        """The token of each row of ``logits`` [N, V] float32, rows contiguous; -1 where they are not finite."""
        tokens = torch.empty(len(logits), dtype=torch.int32)
        self._library.graft_sample(
            self._handle, logits.data_ptr(), logits.stride(0), *logits.shape, samplings, tokens.data_ptr()
        )
        return tokens.tolist()

    def pack(self, rows: Tensor, padded: int) -> tuple[Tensor, Tensor]:
        """Quantize a matrix to int8 in the panels that the kernels multiply by. Any thread may call this at any time.

        A panel holds 16 rows side by side, four inputs of each. A byte is the quantized value plus 128.

        Args:
            rows: [n, k] float32, with any strides.
            padded: k rounded up to a multiple of 4; what is added is zero.

        Returns:
            The panels [ceil(n / 16), padded / 4, 16, 4] uint8, and one scale per row [n rounded up to 16] float32.
        """
        num_panels = -(-rows.shape[0] // LANES)
        panels = torch.empty(num_panels, padded // 4, LANES, 4, dtype=torch.uint8)
        scales = torch.empty(num_panels * LANES)
        self._library.graft_pack(
            rows.data_ptr(), *rows.stride(), *rows.shape, padded, panels.data_ptr(), scales.data_ptr()
        )
        return panels, scales

    def adapters_of(self, runs: Sequence[AdapterRun], num_rows: int) -> RowAdapters:
        """The runs in the layout of the kernels; cached, since all layers of a step pass the same ones."""
        if self._newest is None or self._newest[0] is not runs or self._newest[1] != num_rows:
            self._newest = (runs, num_rows, RowAdapters(runs, num_rows))
        return self._newest[2]

    def __del__(self) -> None:
        self._library.graft_close(self._handle)
