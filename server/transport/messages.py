"""What API processes and the engine worker say to one another.

Up, through LitServe's request queue: ``Generate``, ``Cancel``, ``StatsRequest``. Down, through its response queues:
``Frame``,
everything one engine step has for one API process in one message. ``epoch`` names one life of the worker: what was
addressed to a dead one is dropped by the next.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from graftwork.server.engine.request import Delta, Request


@dataclass(frozen=True, slots=True)
class Generate:
    epoch: str
    request: Request


@dataclass(frozen=True, slots=True)
class Cancel:
    epoch: str
    request_id: str


@dataclass(frozen=True, slots=True)
class StatsRequest:
    """A question with one answer: ``stats``."""

    epoch: str
    id: str
    what: Literal["stats"]


EngineMessage = Generate | Cancel | StatsRequest


@dataclass(frozen=True, slots=True)
class Hello:
    """The worker is there: who it is, and what it loaded."""

    epoch: str
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
    """The engine's state at one moment. ``seats`` by digest.

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
    seats: dict[str, AdapterState]


@dataclass(frozen=True, slots=True)
class Frame:
    epoch: str
    deltas: list[Delta] = field(default_factory=list)
    hello: Hello | None = None
    answers: list[tuple[str, Any]] = field(default_factory=list)


#: The mailbox of every API process in LitServe's response buffers.
MAILBOX = "mux"
