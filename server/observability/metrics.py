"""Prometheus metrics: a registry of this server's own, and one method per event.

Labels are bounded: routes are templates, and adapters are names that the registry resolved, of which only the first
``max_adapters`` get a label of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST
OTHERS = "_others"
"""The label of every adapter beyond the first ``max_adapters``. No adapter can have this name."""

TIERS = ("device", "host", "store")

_FIRST_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3, 6, 12, 25, 60)
_NEXT_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_REQUEST_SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)


class EngineStats(Protocol):
    """The engine's state at one moment. What begins with ``num_`` counts from the engine's own start."""

    @property
    def running(self) -> int:
        """Sequences that run."""

    @property
    def waiting(self) -> int:
        """Sequences that wait."""

    @property
    def memory_bytes(self) -> int:
        """Resident memory of the engine's process."""

    @property
    def cache_tokens_used(self) -> int:
        """Tokens of running sequences in the key-value cache."""

    @property
    def retained_tokens(self) -> int:
        """Tokens of ended sequences in the key-value cache."""

    @property
    def num_prompt_tokens(self) -> int:
        """Prompt tokens of admitted requests."""

    @property
    def num_cached_tokens(self) -> int:
        """Those of them that the prefix cache had."""

    @property
    def num_steps(self) -> int:
        """Steps computed."""

    @property
    def num_preemptions(self) -> int:
        """Sequences that were preempted."""

    @property
    def num_loads(self) -> int:
        """Adapters that were fetched."""

    @property
    def num_evictions(self) -> int:
        """Adapters that were evicted from the device."""


class Metrics:
    """All metrics of one server process.

    Args:
        max_adapters: How many adapters get a label of their own.
    """

    def __init__(self, *, max_adapters: int = 1000) -> None:
        self.registry = CollectorRegistry()
        self._max_adapters = max_adapters
        self._adapters: set[str] = set()
        self._counted: dict[str, int] = {}

        self._requests = self._counter("requests", "HTTP requests answered.", "route", "status", "adapter")
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens read.", "adapter")
        self._completion_tokens = self._counter("completion_tokens", "Tokens written.", "adapter")
        self._request_seconds = self._histogram(
            "request_seconds", "From a request's first byte to its answer's last.", _REQUEST_SECONDS, "route"
        )
        self._first_token_seconds = self._histogram(
            "first_token_seconds", "From a generation's admission to its first token.", _FIRST_TOKEN_SECONDS
        )
        self._next_token_seconds = self._histogram(
            "next_token_seconds", "From a token to the next one of the same answer.", _NEXT_TOKEN_SECONDS
        )

        self._feedback = self._counter("feedback", "What was said of answers.", "adapter", "kind")
        self._interactions_dropped = self._counter("interactions_dropped", "Interactions that were not logged.")
        self._shadows = self._counter(
            "shadows", "Copies of requests for shadow arms, by what became of them.", "outcome"
        )

        self._batch_results = self._counter("batch_results", "Requests of batches, by what became of them.", "outcome")

        self._rounds = self._gauge(
            "learning_rounds", "Rounds of adapters that learn by themselves, by their state.", "adapter", "state"
        )
        self._judgements = self._gauge(
            "learning_judgements", "New judgements that an adapter's learning policy has counted.", "adapter"
        )

        self._ready = self._gauge("ready", "1 while the engine, or one of several, answers.")
        self._database = self._gauge("database_reachable", "0 while the database is away.")
        self._restarts = self._counter("worker_restarts", "Engine workers that were replaced after they died.")
        self._waiting = self._gauge("queue_depth", "Generations that wait for their first step.")
        self._running = self._gauge("running", "Generations in the batch.")
        self._memory = self._gauge("worker_memory_bytes", "Memory that the engine worker takes.")
        self._cache_tokens = self._gauge("cache_tokens", "Tokens of running generations in the key-value cache.")
        self._retained_tokens = self._gauge("retained_tokens", "Tokens that ended generations left in the cache.")
        self._prefix_tokens = self._counter("prefix_tokens", "Prompt tokens that were looked up in the prefix cache.")
        self._prefix_hits = self._counter("prefix_hit_tokens", "Prompt tokens that did not have to be computed.")
        self._steps = self._counter("steps", "Forward passes.")
        self._preemptions = self._counter(
            "preemptions", "Generations put back into the queue, for lack of cache or for fair shares."
        )
        self._loads = self._counter("adapter_loads", "Adapters read from the store.")
        self._evictions = self._counter("adapter_evictions", "Adapters moved off the device to make room.")
        self._resident = self._gauge("resident_versions", "Adapter versions by where their weights are.", "tier")
        self._live = self._gauge("live_on_device", "1 for adapters whose live version is on the device.", "adapter")
        self._engine_ready = self._gauge("engine_ready", "1 while this one of several engines answers.", "engine")
        self._engine_restarts = self._counter("engine_restarts", "How often this engine was replaced.", "engine")
        self._engine_running = self._gauge("engine_running", "Generations in this engine's batch.", "engine")
        self._engine_waiting = self._gauge("engine_queue_depth", "Generations that wait in this engine.", "engine")
        self._engine_memory = self._gauge("engine_memory_bytes", "Memory that this engine takes.", "engine")
        self._engine_loads = self._counter("engine_adapter_loads", "Adapters that this engine read.", "engine")
        self._build = Info("graftwork_build", "What runs here.", registry=self.registry)
        self.set_adapter_tiers({}, {})

    # -- requests ------------------------------------------------------------------------------------------------
    def request_answered(self, *, route: str, status: int, adapter: str | None, seconds: float) -> None:
        """Count an HTTP request.

        Args:
            route: A template like ``/v1/adapters/{name}``.
            status: The HTTP status.
            adapter: A resolved name; ``None`` without one.
            seconds: Its duration.
        """
        self._requests.labels(route, str(status), self._adapter(adapter)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def tokens(self, *, adapter: str, prompt: int, completion: int) -> None:
        """Count the tokens of one generation. ``adapter`` is a resolved name, or the base's id."""
        label = self._adapter(adapter)
        self._prompt_tokens.labels(label).inc(prompt)
        self._completion_tokens.labels(label).inc(completion)

    def feedback(self, *, adapter: str, kinds: Iterable[str]) -> None:
        """Count feedback. ``adapter`` is the name of the adapter that was rated, or the base's id."""
        for kind in kinds:
            self._feedback.labels(self._adapter(adapter), kind).inc()

    def interactions_dropped(self, count: int) -> None:
        """Count interactions that were not logged."""
        self._interactions_dropped.inc(count)

    def shadow(self, outcome: str) -> None:
        """Count a shadow copy: ``answered``, ``failed``, or ``skipped`` for lack of capacity."""
        self._shadows.labels(outcome).inc()

    def batch_result(self, outcome: str) -> None:
        """Count a batch's request that has a result: ``completed`` or ``failed``."""
        self._batch_results.labels(outcome).inc()

    def first_token(self, seconds: float) -> None:
        """Observe the time from a generation's admission to its first token."""
        self._first_token_seconds.observe(seconds)

    def next_token(self, seconds: float) -> None:
        """Observe the time between two tokens of an answer."""
        self._next_token_seconds.observe(seconds)

    # -- the engine ----------------------------------------------------------------------------------------------
    def set_engines(self, stats: Mapping[str, EngineStats]) -> None:
        """Set the sums over engines. Their counts begin anew with each worker, the metrics go on.

        Args:
            stats: Of the engines that answer, by name.
        """
        self._waiting.set(sum(engine.waiting for engine in stats.values()))
        self._running.set(sum(engine.running for engine in stats.values()))
        self._memory.set(sum(engine.memory_bytes for engine in stats.values()))
        self._cache_tokens.set(sum(engine.cache_tokens_used for engine in stats.values()))
        self._retained_tokens.set(sum(engine.retained_tokens for engine in stats.values()))
        for name, engine in stats.items():
            self._count(f"{name} prefix_tokens", self._prefix_tokens, engine.num_prompt_tokens)
            self._count(f"{name} prefix_hits", self._prefix_hits, engine.num_cached_tokens)
            self._count(f"{name} steps", self._steps, engine.num_steps)
            self._count(f"{name} preemptions", self._preemptions, engine.num_preemptions)
            self._count(f"{name} loads", self._loads, engine.num_loads)
            self._count(f"{name} evictions", self._evictions, engine.num_evictions)

    def set_engine(self, name: str, *, ready: bool, num_restarts: int, stats: EngineStats | None) -> None:
        """Set the metrics of one of several engines.

        Args:
            name: Of the engine.
            ready: Whether it answers.
            num_restarts: How often it was restarted since the server started.
            stats: What it says of itself; ``None``: nothing.
        """
        self._engine_ready.labels(name).set(ready)
        self._count(f"{name} restarts", self._engine_restarts.labels(name), num_restarts)
        self._engine_running.labels(name).set(0 if stats is None else stats.running)
        self._engine_waiting.labels(name).set(0 if stats is None else stats.waiting)
        if stats is not None:
            self._engine_memory.labels(name).set(stats.memory_bytes)
            self._count(f"{name} engine_loads", self._engine_loads.labels(name), stats.num_loads)

    def set_worker(self, *, ready: bool, num_restarts: int) -> None:
        """Set whether the engine answers, and how often it was restarted since the server started."""
        self._ready.set(ready)
        self._count("restarts", self._restarts, num_restarts)

    def set_database(self, *, reachable: bool) -> None:
        """Set whether the database can be reached."""
        self._database.set(reachable)

    def set_adapter_tiers(self, num_by_tier: Mapping[str, int], tier_of_live: Mapping[str, str]) -> None:
        """Set where adapters are.

        Args:
            num_by_tier: How many versions are on the device, in host memory, only in the store.
            tier_of_live: Where each adapter's live version is.
        """
        for tier in TIERS:
            self._resident.labels(tier).set(num_by_tier.get(tier, 0))
        for name, tier in tier_of_live.items():
            if (label := self._adapter(name)) != OTHERS:
                self._live.labels(label).set(tier == "device")

    # -- learning policies ---------------------------------------------------------------------------------------
    def set_learning(self, standings: Mapping[str, tuple[int, Mapping[str, int]]]) -> None:
        """Set the state of learning policies.

        Args:
            standings: By adapter, its new judgements and how many rounds are in each state.
        """
        self._rounds.clear()
        self._judgements.clear()
        for name, (judgements, rounds) in standings.items():
            if (label := self._adapter(name)) != OTHERS:
                self._judgements.labels(label).set(judgements)
                for state, count in rounds.items():
                    self._rounds.labels(label, state).set(count)

    # -- this server ---------------------------------------------------------------------------------------------
    def set_build(self, **facts: str) -> None:
        """Set what identifies this server: version, base, base digest."""
        self._build.info(facts)

    def render(self) -> bytes:
        """All metrics in Prometheus' text format, of type ``CONTENT_TYPE``."""
        return generate_latest(self.registry)

    def _count(self, what: str, counter: Counter, total: int) -> None:
        """Bring ``counter`` up to a source whose own ``total`` may have restarted from zero."""
        before = self._counted.get(what, 0)
        counter.inc(total - before if total >= before else total)
        self._counted[what] = total

    def _adapter(self, name: str | None) -> str:
        """The label of an adapter."""
        if name is None or name in self._adapters:
            return name or ""
        if len(self._adapters) >= self._max_adapters:
            return OTHERS
        self._adapters.add(name)
        return name

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(f"graftwork_{name}", about, labels, registry=self.registry)

    def _gauge(self, name: str, about: str, *labels: str) -> Gauge:
        return Gauge(f"graftwork_{name}", about, labels, registry=self.registry)

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"graftwork_{name}", about, labels, buckets=buckets, registry=self.registry)
