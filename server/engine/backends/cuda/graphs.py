"""CUDA graphs: the launches of a decoding step, captured once and replayed as a whole.

A decoding step of a large base is more than a thousand kernels of some microseconds each; a host that launches them one
by one is slower than the GPU that runs them. What is captured reads and writes fixed addresses and never synchronizes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class GraphRecorder(Protocol):
    """Captures computations, so that they can be replayed without Python."""

    def record(self, compute: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        """Capture ``compute``, which must not synchronize with the device.

        Returns:
            The tensor that every replay writes its result to, and the function that replays.
        """


class CudaGraphRecorder:
    """Captures CUDA graphs that share one stream and one memory pool: no two of them may run at the same time."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        with torch.cuda.device(device):
            self._pool = torch.cuda.graph_pool_handle()

    def record(self, compute: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        """Run ``compute`` once, then capture it. See ``GraphRecorder.record``."""
        # Kernels are compiled and libraries set themselves up on their first calls, which cannot be captured.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            compute()
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # thread_local: what another thread does on the device meanwhile does not break the capture.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            result = compute()
        return result, graph.replay
