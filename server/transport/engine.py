"""The protocol between the gateway and an engine. ``EngineClient`` implements it by this server's own worker,
``VllmEngine`` by a vLLM server.

Nothing here assumes that an engine runs on the same machine: adapters are named by their digests, waiting times are
durations, and an engine that is lost ends its streams with an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.errors import InvalidRequest, Overloaded
from graftwork.adapters.peft_format.spec import AdapterSpec
from graftwork.server.engine.request import Delta, SamplingParams
from graftwork.server.observability.metrics import EngineStats

EngineState = Literal["starting", "ready", "recovering", "draining"]
"""Only a ready engine takes requests."""

EngineInput = tuple[Sequence[int], SamplingParams]
"""One choice of a request: the prompt's token ids and the sampling."""


@dataclass(eq=False, slots=True)
class EngineStream:
    """The deltas of one request's choices as they come, an asynchronous iterable of (choice, delta).

    Attributes:
        ids: The engine's request id of each choice.
        items: Deltas that were received, or the error that ends all choices.
        open: Ids of choices that have not ended.
        background: Whether no user waits for it.
        tenant: Who asks, by the key's id.
        weight: The tenant's share, beside the weights of other tenants.
    """

    ids: list[str]
    background: bool = False
    tenant: str = ""
    weight: float = 1.0
    items: asyncio.Queue[tuple[int, Delta] | Exception] = field(default_factory=asyncio.Queue)
    open: set[str] = field(default_factory=set)

    async def __aiter__(self) -> AsyncIterator[tuple[int, Delta]]:
        """Yield (choice, delta) until every choice has ended.

        Raises:
            Unavailable: The engine is lost.
        """
        ended = 0
        while ended < len(self.ids):
            item = await self.items.get()
            if isinstance(item, Exception):
                raise item
            ended += item[1].done
            yield item


class AdapterPlacement(Protocol):
    """Where one adapter's weights are."""

    @property
    def tier(self) -> str:
        """``device``, ``host``, or anything else for the store."""

    @property
    def load_ms(self) -> float | None:
        """How long its last fetch took, in milliseconds; ``None`` before the first."""


def context_length(engine: EngineProtocol, base: BaseInfo) -> int:
    """Tokens of the context, prompt and answer together: as the engine was started, or as the base has it."""
    return int(engine.base_card.get("max_length", base.max_positions))


def check_room(
    streams: Sequence[EngineStream], num_more: int, max_open: int, *, tenant: str, weight: float, background: bool
) -> None:
    """Check whether a tenant may open so many more answers. Those that no user waits for always may.

    While the queue has room everybody may. When it is full, those may who stay below their share of it, which is by
    weight among all who have open answers, and those who have none open. So nothing that was accepted is given up for
    others, and who asks little is never refused. The price is a queue that others' shares are added to: 1.5 times as
    long with two who take all they get, 1 + 1/2 + … + 1/n times with n of them.

    Args:
        streams: Of each open answer.
        num_more: Choices of the new request.
        max_open: The most answers that users may have open.
        tenant: Who asks.
        weight: Its share, beside the weights of others.
        background: Whether no user waits.

    Raises:
        InvalidRequest: There are more choices than this server takes at all.
        Overloaded: The queue is full, and the tenant has its share of it.
    """
    if num_more > max_open:
        raise InvalidRequest(
            f"The request asks for {num_more} answers at once; this server takes {max_open}. Send several.",
            param="n",
        )
    users = [stream for stream in streams if not stream.background]
    num_open = sum(stream.tenant == tenant for stream in users)
    if background or len(users) + num_more <= max_open or not num_open:
        return
    weights = {**{stream.tenant: stream.weight for stream in users}, tenant: weight}
    share = int(max_open * weight / sum(weights.values()))
    if num_open + num_more > share:
        raise Overloaded(
            f"{num_open} answers are running or waiting for you. This server is full, and takes {max(1, share)} of "
            "you while it is. Try again soon.",
            retry_after=1,
        )


class EngineProtocol(Protocol):
    """What the gateway needs of an engine."""

    async def start(self, api_process: int, /) -> None:
        """Begin to serve the API process of that number, in its event loop. The engine may become ready later."""

    async def stop(self) -> None:
        """Close what ``start`` opened."""

    @property
    def state(self) -> EngineState:
        """Whether requests are taken, or why not."""

    @property
    def base_card(self) -> Mapping[str, Any]:
        """How the base was loaded: quantize, dtype, device, memory_bytes and the like. Empty before it is."""

    @property
    def num_restarts(self) -> int:
        """How often the engine was started again."""

    @property
    def max_open(self) -> int:
        """How many answers may be under way at once."""

    @property
    def max_choices(self) -> int:
        """How many of them one request may have. Not all of ``max_open``, where that is of several engines."""

    def num_open(self) -> int:
        """Answers that are under way."""

    def num_background(self) -> int:
        """Those of them that no user of this process waits for."""

    def open(
        self,
        inputs: Sequence[EngineInput],
        /,
        *,
        adapter: str | None,
        cache_salt: str = "",
        background: bool = False,
        tenant: str = "",
        weight: float = 1.0,
    ) -> EngineStream:
        """Send the choices of one request.

        Args:
            inputs: One for each choice.
            adapter: The digest of a published adapter; ``None``: the bare base.
            cache_salt: Prompts of another salt share no prefixes with it.
            background: Whether no user waits for it: it takes no place in the queue, of which others would be refused.
            tenant: Who asks, by the key's id: tenants share the engine and its queue fairly.
            weight: The tenant's share, beside the weights of other tenants.

        Raises:
            Overloaded: The queue is full, and the tenant has its share of it.
            Unavailable: There is no engine at the moment.
        """

    def cancel(self, stream: EngineStream, choice: int | None = None, /) -> None:
        """Stop one choice, or all. Choices that have ended are not affected."""

    def takes(self, spec: AdapterSpec, /) -> None:
        """Check whether this engine can serve an adapter.

        Raises:
            InvalidAdapter: It cannot; the message names the field.
        """

    async def ensure(self, digest: str, /) -> None:
        """Have a published adapter ready before requests come for it. If it cannot be loaded, nothing happens.

        Raises:
            Unavailable: There is no engine at the moment, or it was lost.
        """

    async def release(self, digest: str, /) -> None:
        """Forget an adapter after its last request, so that its folder may be removed.

        Raises:
            Unavailable: It is not known whether it was forgotten: the folder must stay.
        """

    async def canary(self, digest: str, /) -> None:
        """Load a published adapter and try it.

        Raises:
            InvalidAdapter: It cannot be loaded, or changes nothing.
            Unavailable: There is no engine at the moment.
        """

    async def residency(self) -> Mapping[str, AdapterPlacement]:
        """Adapters that are not only in the store, by digest. Empty while there is no engine."""

    async def stats(self) -> EngineStats:
        """The engine's statistics.

        Raises:
            Unavailable: There is no engine at the moment.
        """
