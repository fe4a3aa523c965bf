"""The adapters that one vLLM server knows: registered by digest, once each, and forgotten when nobody uses them.

The name is the digest and the path ends in it, so that no prefix cache can hold another adapter's blocks: the server
keys it by name and path. It reads a folder again whenever the adapter was pushed out of its memory, and a folder that
is gone by then ends the whole server. So a folder must stay as long as its name is known there: see ``release``.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePath

from graftwork.adapters.errors import InvalidAdapter, Unavailable
from graftwork.server.transport.vllm.server import LOAD, UNLOAD, NotServed, Refused, VllmServer

_RANK = re.compile(r"LoRA rank (\d+) is greater than max_lora_rank (\d+)")


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """Where one adapter is: implements ``AdapterPlacement``.

    Attributes:
        tier: ``device`` if the running batch uses it, otherwise ``host``.
        load_ms: How long its registration took, in milliseconds.
    """

    tier: str
    load_ms: float | None


class ServerAdapters:
    """The adapters of one server.

    Args:
        server: The server.
        folder: Where its host sees the folder of published adapters.

    Attributes:
        load_ms: How long each registered adapter's registration took, in milliseconds, by digest.
        num_loads: How often one was registered.
    """

    def __init__(self, server: VllmServer, folder: PurePath) -> None:
        self.load_ms: dict[str, float] = {}
        self.num_loads = 0
        self._server = server
        self._folder = folder
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._uses: Counter[str] = Counter()
        self._unused: dict[str, asyncio.Event] = {}

    async def ensure(self, digest: str) -> None:
        """Register an adapter, unless it is. Whoever comes meanwhile waits for the same registration.

        Raises:
            InvalidAdapter: The server cannot serve it; the message says which of its flags would help.
            Unavailable: The server cannot register adapters, or does not see this one's folder.
            NotServed: The server is gone.
        """
        if digest in self.load_ms:
            return
        if (loading := self._loading.get(digest)) is None:
            loading = self._loading[digest] = asyncio.create_task(self._load(digest))
            loading.add_done_callback(lambda _: self._loading.pop(digest, None))
        await asyncio.shield(loading)

    @contextmanager
    def used(self, digest: str) -> Iterator[None]:
        """A context in which a request uses an adapter."""
        self._uses[digest] += 1
        try:
            yield
        finally:
            self._uses[digest] -= 1
            if not self._uses[digest]:
                del self._uses[digest]
                if unused := self._unused.pop(digest, None):
                    unused.set()

    async def release(self, digest: str) -> None:
        """Make the server forget an adapter, after its last request. Only then may its folder be removed.

        Raises:
            NotServed: It is not known whether the server forgot it.
        """
        if self._uses[digest]:
            await self._unused.setdefault(digest, asyncio.Event()).wait()
        self.load_ms.pop(digest, None)
        try:
            await self._server.post(UNLOAD, {"lora_name": digest})
        except Refused as refused:
            if refused.status != 404:
                raise NotServed(refused.message, status=refused.status) from refused

    def forget(self, digest: str | None = None) -> None:
        """Forget that an adapter is registered, or that any is: the server was started anew."""
        if digest is None:
            self.load_ms.clear()
        else:
            self.load_ms.pop(digest, None)

    async def _load(self, digest: str) -> None:
        path = str(self._folder / digest.removeprefix("sha256:"))
        began = time.monotonic()
        try:
            await self._server.post(LOAD, {"lora_name": digest, "lora_path": path})
        except Refused as refused:
            if "already been loaded" not in refused.message:
                raise self._unregistrable(refused, path) from refused
        except NotServed as failed:
            if failed.status != 500 or not await self._server.is_healthy():
                raise
            raise _invalid(failed.message) from failed
        self.num_loads += 1
        self.load_ms[digest] = (time.monotonic() - began) * 1000

    def _unregistrable(self, refused: Refused, path: str) -> Unavailable:
        url = self._server.url
        if refused.status == 404 and path in refused.message:
            why = (
                f"vLLM at {url} sees no adapter in {path}. Share the folder of adapters with its host, name it as it "
                "is there with --engine-adapters, and let vLLM's user read it."
            )
        else:
            why = f"vLLM at {url} registers no adapters: {refused.message}"
        return Unavailable(why, code="adapter_not_loaded")


def _invalid(reason: str) -> InvalidAdapter:
    """What a server says when it cannot load an adapter, all with status 500."""
    if found := _RANK.search(reason):
        rank, most = found.groups()
        return InvalidAdapter(
            f"The adapter has rank {rank}, and vLLM was started for ranks up to {most}: start it with "
            f"--max-lora-rank {rank} or more, or train with a smaller rank.",
            param="r",
        )
    if "lora" in reason.lower() and "not enabled" in reason.lower():
        return InvalidAdapter("vLLM was started without adapters: start it with --enable-lora.")
    return InvalidAdapter(f"vLLM cannot load the adapter: {reason}", code="canary_failed")
