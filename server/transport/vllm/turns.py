"""Who may ask a vLLM server at the same time: prompts that are scored are computed alone.

With adapters on, vLLM 0.32 on a CPU applies the adapters of the batch's rows to a prompt's scores, whose number is
another one: if the batch has more than one request, the whole server dies of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """Requests go beside one another, or alone. One that waits to be alone holds up those that come after it."""

    def __init__(self) -> None:
        self._entry = asyncio.Lock()  # taken in the order of coming
        self._num_inside = 0
        self._empty = asyncio.Event()
        self._empty.set()

    @asynccontextmanager
    async def beside_others(self) -> AsyncIterator[None]:
        """A context in which others may ask, too."""
        async with self._entry:
            self._num_inside += 1
            self._empty.clear()
        try:
            yield
        finally:
            self._num_inside -= 1
            if not self._num_inside:
                self._empty.set()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """A context in which nobody else asks."""
        async with self._entry:
            await self._empty.wait()
            yield
