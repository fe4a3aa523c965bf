"""What vLLM's ``/metrics`` say of its load."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

_LINE = re.compile(r"(?P<name>[a-z_:]+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
_LABEL = re.compile(r'(\w+)="([^"]*)"')

_ADAPTERS = "vllm:lora_requests_info"
_CACHE = "vllm:cache_config_info"


@dataclass(frozen=True, kw_only=True, slots=True)
class VllmStats:
    """The engine's state at one moment; implements ``EngineStats``.

    Attributes:
        running: Sequences that run.
        waiting: Sequences that wait.
        memory_bytes: Resident memory of its API process; what its engine takes it does not say.
        cache_tokens_used: Tokens in the key-value cache, of sequences that run.
        retained_tokens: Not said: 0.
        num_prompt_tokens: Prompt tokens that were looked up in the prefix cache.
        num_cached_tokens: Those of them that it had.
        num_steps: Steps computed.
        num_preemptions: Sequences that were preempted.
        num_loads: Adapters that this gateway registered.
        num_evictions: Not said: 0.
        running_adapters: The names of adapters in the running batch.
    """

    running: int
    waiting: int
    memory_bytes: int
    cache_tokens_used: int
    num_prompt_tokens: int
    num_cached_tokens: int
    num_steps: int
    num_preemptions: int
    num_loads: int
    running_adapters: frozenset[str]
    retained_tokens: int = 0
    num_evictions: int = 0


def read_stats(text: str, *, num_loads: int) -> VllmStats:
    """The state that a server's metrics, in Prometheus' text format, tell. Engines of one server add up."""
    totals: defaultdict[str, float] = defaultdict(float)
    adapters: list[tuple[float, str]] = []
    num_cache_tokens = 0.0
    for line in text.splitlines():
        if (found := _LINE.fullmatch(line)) is None:
            continue
        name, value = found["name"], float(found["value"])
        totals[name] += value
        if name == _ADAPTERS:
            adapters.append((value, dict(_LABEL.findall(found["labels"]))["running_lora_adapters"]))
        elif name == _CACHE:
            num_cache_tokens += float(dict(_LABEL.findall(found["labels"])).get("kv_cache_size_tokens", 0))
    # The value is the time of the change: label sets of earlier times stay in the text.
    _, running = max(adapters, default=(0.0, ""))
    return VllmStats(
        running=int(totals["vllm:num_requests_running"]),
        waiting=int(totals["vllm:num_requests_waiting"]),
        memory_bytes=int(totals["process_resident_memory_bytes"]),
        cache_tokens_used=int(totals["vllm:kv_cache_usage_perc"] * num_cache_tokens),
        num_prompt_tokens=int(totals["vllm:prefix_cache_queries_total"]),
        num_cached_tokens=int(totals["vllm:prefix_cache_hits_total"]),
        num_steps=int(totals["vllm:iteration_tokens_total_count"]),
        num_preemptions=int(totals["vllm:num_preemptions_total"]),
        num_loads=num_loads,
        running_adapters=frozenset(filter(None, running.split(","))),
    )
