"""What API processes and the engine worker say to one another, and how it is written on their connection.

Up go ``Generate``, ``Cancel`` and ``StatsRequest``; down goes ``Frame``. A message is JSON behind four bytes of its
length. A connection lives as long as the worker at its end: what was addressed to a dead worker reaches no other.
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
    request_ids: list[str]
    op: Literal["cancel"] = "cancel"


@dataclass(frozen=True, slots=True)
class StatsRequest:
    id: str
    op: Literal["stats"] = "stats"


EngineMessage = Generate | Cancel | StatsRequest


@dataclass(frozen=True, slots=True)
class Hello:
    """The worker's first message: who it is, and what it loaded."""

    pid: int
    card: dict[str, Any]


@dataclass(frozen=True, slots=True)
class AdapterState:
    """Where one adapter is: ``tier`` is device, host, fetching or store."""

    tier: str
    load_ms: float | None
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Stats:
    """The engine's state at one moment. ``adapters`` by digest.

    ``cache_tokens_used`` are of running sequences, ``retained_tokens`` of ended ones; of all ``num_prompt_tokens`` that
    were asked about, ``num_cached_tokens`` did not have to be computed.
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
    """All that one engine step has for one API process. ``stats`` answer the questions of these ids."""

    deltas: list[Delta] = field(default_factory=list)
    hello: Hello | None = None
    stats: list[tuple[str, Stats]] = field(default_factory=list)


_MESSAGES: pydantic.TypeAdapter[EngineMessage] = pydantic.TypeAdapter(
    Annotated[EngineMessage, pydantic.Discriminator("op")]
)
_FRAMES: pydantic.TypeAdapter[Frame] = pydantic.TypeAdapter(Frame)


def encode(message: EngineMessage | Frame) -> bytes:
    """The bytes of one message, its length in front."""
    body = pydantic_core.to_json(message, inf_nan_mode="constants")
    return _LENGTH.pack(len(body)) + body


def decode_message(body: bytes) -> EngineMessage:
    return _MESSAGES.validate_json(body)


def decode_frame(body: bytes) -> Frame:
    return _FRAMES.validate_json(body)


class MessageBuffer:
    """Bytes as they arrive, taken apart into the bodies of messages."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The bodies that are complete with ``data``."""
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
