"""Reads adapters from the store in a thread and packs them for the device, so that loading one never delays the running
batch.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from graftwork.server.engine.lora.host_adapter import HostAdapter
from graftwork.server.engine.lora.packed import PackedAdapter

#: Reads an adapter by digest into host memory; raises when it cannot.
FetchAdapter = Callable[[str], HostAdapter]


@dataclass(frozen=True, slots=True)
class FetchedAdapter:
    """The result of a fetch: ``adapter``, or ``error``. ``seconds`` is how long reading and packing took."""

    digest: str
    adapter: PackedAdapter | None
    seconds: float
    error: Exception | None = None


class AdapterFetcher:
    """A thread that reads adapters one after another and packs them: steps only have to copy.

    Args:
        fetch: Reads an adapter from the store.
        pack: Lays it out for the device.
        on_arrival: Called in the thread after each adapter.
    """

    def __init__(
        self, fetch: FetchAdapter, pack: Callable[[HostAdapter], PackedAdapter], on_arrival: Callable[[], None]
    ) -> None:
        self._fetch = fetch
        self._pack = pack
        self._on_arrival = on_arrival
        self._wanted: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._arrived: queue.SimpleQueue[FetchedAdapter] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="adapter-fetcher", daemon=True)
        self._thread.start()

    def submit(self, digest: str) -> None:
        """Queue an adapter; it is among ``completed`` later."""
        self._wanted.put(digest)

    def completed(self) -> Iterable[FetchedAdapter]:
        """Adapters that were fetched, or failed, since the last call."""
        while not self._arrived.empty():
            yield self._arrived.get()

    def close(self) -> None:
        """Stop the thread after the adapter that it is reading; wait 5 s at most."""
        self._wanted.put(None)
        self._thread.join(timeout=5)

    def _work(self) -> None:
        while (digest := self._wanted.get()) is not None:
            began = time.perf_counter()
            adapter, error = None, None
            try:
                adapter = self._pack(self._fetch(digest))
            except Exception as failure:
                error = failure
            self._arrived.put(FetchedAdapter(digest, adapter, time.perf_counter() - began, error))
            self._on_arrival()
