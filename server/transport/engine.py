"""The protocol between the gateway and an engine. This server's own worker is the implementation, by ``EngineClient``.

Nothing here assumes that an engine runs on the same machine: adapters are named by their digests, waiting times are
durations, and an engine that is lost ends its streams with an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from graftwork.adapters.base import BaseInfo
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


class EngineProtocol(Protocol):
    """What the gateway needs of an engine."""

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
