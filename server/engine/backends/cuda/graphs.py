"""Captured graphs: what a decoding step launches, recorded once, launched again as a whole.

A decoding step of a large base is more than a thousand kernels of some microseconds each; a host that launches them one
by one is slower than the card that runs them. What is captured reads and writes fixed places and waits for nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class GraphRecorder(Protocol):
    """Records computations, so that they can be done again without Python."""

    def record(self, compute: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        """Returns the tensor that every replay writes its result to, and what replays."""


class CudaGraphRecorder:
    """CUDA graphs that are never replayed at the same time: all share one stream and one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        with torch.cuda.device(device):
            self._pool = torch.cuda.graph_pool_handle()

    def record(self, compute: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        # Kernels are compiled and libraries set themselves up on their first calls, which cannot be captured.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            compute()
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # thread_local: what another thread does on the card meanwhile does not spoil the capture.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            result = compute()
        return result, graph.replay
