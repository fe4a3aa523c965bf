"""The protocol between the gateway and whatever computes its answers: so far this server's own worker.

Nothing here assumes that an engine runs on the same machine: adapters are named by their digests, waiting is told in
seconds, and an engine that is lost ends its streams with an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from graftwork.adapters.peft_format.spec import AdapterSpec
from graftwork.server.engine.request import Delta, SamplingParams
from graftwork.server.observability.metrics import EngineStats

EngineState = Literal["starting", "ready", "recovering", "draining"]

EngineInput = tuple[Sequence[int], SamplingParams]
"""What an engine is asked for one choice: a prompt's token ids and how to go on."""


@dataclass(eq=False, slots=True)
class EngineStream:
    """The deltas of one request's choices as they come. Item: (choice, delta), or the error that ended them all."""

    ids: list[str]
    items: asyncio.Queue[tuple[int, Delta] | Exception] = field(default_factory=asyncio.Queue)
    open: set[str] = field(default_factory=set)

    async def __aiter__(self) -> AsyncIterator[tuple[int, Delta]]:
        """Until every choice has ended. Raises Unavailable when the engine is lost."""
        ended = 0
        while ended < len(self.ids):
            item = await self.items.get()
            if isinstance(item, Exception):
                raise item
            ended += item[1].done
            yield item


class AdapterPlacement(Protocol):
    """Where one adapter's weights are: ``tier`` is ``device``, ``host``, or anything else for the store."""

    @property
    def tier(self) -> str: ...
    @property
    def load_ms(self) -> float | None: ...


class EngineProtocol(Protocol):
    """What the gateway asks of an engine."""

    @property
    def state(self) -> EngineState: ...

    @property
    def base_card(self) -> Mapping[str, Any]:
        """How the base was loaded: quantize, dtype, device, memory_bytes and the like. Empty while it was not."""

    @property
    def num_restarts(self) -> int: ...

    def num_open(self) -> int:
        """Answers that are under way."""

    def open(self, inputs: Sequence[EngineInput], /, *, adapter: str | None) -> EngineStream:
        """Send the choices of one request.

        Args:
            inputs: one for each choice.
            adapter: the digest of a published adapter; None for the bare base.

        Raises:
            Overloaded: the queue is full.
            Unavailable: there is no engine at the moment.
        """

    def cancel(self, stream: EngineStream, choice: int | None = None, /) -> None:
        """Stop one choice, or all; what has ended already stays ended."""

    def takes(self, spec: AdapterSpec, /) -> None:
        """Raises InvalidAdapter, naming the field, for an adapter that this engine cannot serve."""

    async def canary(self, digest: str, /) -> None:
        """Load a published adapter and try it. InvalidAdapter when it cannot be loaded or changes nothing."""

    async def residency(self) -> Mapping[str, AdapterPlacement]:
        """By digest, adapters that are not only in the store. Empty while there is no engine."""

    async def stats(self) -> EngineStats:
        """Unavailable while there is no engine."""
