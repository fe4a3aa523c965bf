"""The messages between API processes and the engine worker, and their encoding.

API processes send ``Generate``, ``Cancel`` and ``StatsRequest``; the worker sends ``Frame``. A message is its length in
four bytes, big-endian, and JSON. A connection lives as long as the worker: what was sent to a dead worker reaches no
other.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pydantic
import pydantic_core

from graftwork.server.engine.request import Delta, Request

_LENGTH = struct.Struct("!I")


@dataclass(frozen=True, slots=True)
class Generate:
    """The choices of one request, each of which is a request to the engine."""

    requests: list[Request]
    op: Literal["generate"] = "generate"


@dataclass(frozen=True, slots=True)
class Cancel:
    """Abort these requests of the engine; unknown ids are ignored."""

    request_ids: list[str]
    op: Literal["cancel"] = "cancel"


@dataclass(frozen=True, slots=True)
class StatsRequest:
    """Ask for statistics; the frame that answers carries this id."""

    id: str
    op: Literal["stats"] = "stats"


EngineMessage = Generate | Cancel | StatsRequest


@dataclass(frozen=True, slots=True)
class Hello:
    """The worker's first message: its process id, and how it loaded the base."""

    pid: int
    card: dict[str, Any]


@dataclass(frozen=True, slots=True)
class AdapterState:
    """Where one adapter is.

    Attributes:
        tier: ``device``, ``host``, ``fetching`` or ``store``.
        load_ms: How long its last fetch took, in milliseconds.
        num_bytes: Size in host memory.
    """

    tier: str
    load_ms: float | None
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Stats:
    """The engine's state at one moment; ``num_…`` count since its start, but for sequences.

    Attributes:
        running: Sequences that run.
        waiting: Sequences that wait.
        num_steps: Steps computed.
        num_preemptions: Sequences that were preempted.
        num_loads: Adapters that were fetched.
        num_evictions: Adapters that were evicted from the device.
        cache_tokens_used: Tokens of running sequences in the key-value cache.
        retained_tokens: Tokens of ended sequences in the key-value cache.
        num_prompt_tokens: Prompt tokens of admitted requests.
        num_cached_tokens: Those of them that the prefix cache had.
        memory_bytes: Resident memory of the worker.
        adapters: Adapters in memory, by digest.
    """

    running: int
    waiting: int
    num_steps: int
    num_preemptions: int
    num_loads: int
    num_evictions: int
    cache_tokens_used: int
    retained_tokens: int
    num_prompt_tokens: int
    num_cached_tokens: int
    memory_bytes: int
    adapters: dict[str, AdapterState]


@dataclass(frozen=True, slots=True)
class Frame:
    """Everything that one engine step has for one API process.

    Attributes:
        deltas: Of this process's requests.
        hello: In the first frame only.
        stats: (id, statistics) for each ``StatsRequest``.
    """

    deltas: list[Delta] = field(default_factory=list)
    hello: Hello | None = None
    stats: list[tuple[str, Stats]] = field(default_factory=list)


_MESSAGES: pydantic.TypeAdapter[EngineMessage] = pydantic.TypeAdapter(
    Annotated[EngineMessage, pydantic.Discriminator("op")]
)
_FRAMES: pydantic.TypeAdapter[Frame] = pydantic.TypeAdapter(Frame)


def encode(message: EngineMessage | Frame) -> bytes:
    """A message as bytes, its length in front."""
    body = pydantic_core.to_json(message, inf_nan_mode="constants")
    return _LENGTH.pack(len(body)) + body


def decode_message(body: bytes) -> EngineMessage:
    """The message in a body.

    Raises:
        pydantic.ValidationError: It is none.
    """
    return _MESSAGES.validate_json(body)


def decode_frame(body: bytes) -> Frame:
    """The frame in a body.

    Raises:
        pydantic.ValidationError: It is none.
    """
    return _FRAMES.validate_json(body)


class MessageBuffer:
    """Splits a stream of bytes into the bodies of messages."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Add received bytes; yield the bodies that are complete with them."""
        self._bytes += data
        start = 0
        while len(self._bytes) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._bytes, start)
            stop = start + _LENGTH.size + length
            if len(self._bytes) < stop:
                break
            yield bytes(self._bytes[start + _LENGTH.size : stop])
            start = stop
        del self._bytes[:start]
