"""The workloads by the names that ``--loads`` accepts, and two selections of them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.harness.adapter_folders import named
from benchmarks.harness.errors import BenchmarkError
from benchmarks.load.generator import Load
from benchmarks.load.request_pairs import RequestPairs

QUICK = ("1x0", "16x0", "16x1", "16x8", "16x8-t1", "16x8-top-p", "16x8-schema", "16x32")
SPECIAL = ("short", "long", "system", "poisson", "zipf", "cold", "prefix")
FULL = (
    *(f"{clients}x{adapters}" for adapters in (0, 1, 8, 32) for clients in (1, 4, 16, 64)),
    "16x8-t1",
    "16x8-top-p",
    "16x8-schema",
    *SPECIAL,
)

#: What people ask for beside; every other load is greedy and free. With how its title says so.
_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "-t1": ({"temperature": 1.0}, "temperature 1"),
    "-top-p": ({"temperature": 0.7, "top_p": 0.9}, "temperature 0.7, top_p 0.9"),
    "-schema": ({"held": True}, "half under a schema"),
}

#: Staggered requests arrive at this share of what a closed loop answers.
_RATE_SHARE = 0.7


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A load with its name.

    Attributes:
        key: its name: ``16x8``.
        title: its name in tables.
        load: the load.
        baseline: the workload whose throughput in the same system it is compared with.
        rate_from: the workload whose throughput determines the arrival rate.
        many: whether there are more adapters than a system should keep in memory.
        cold: whether the first request of each adapter must find it on disk only.
    """

    key: str
    title: str
    load: Load | RequestPairs
    baseline: str | None = None
    rate_from: str | None = None
    many: bool = False
    cold: bool = False

    @property
    def adapters(self) -> tuple[str, ...]:
        """All adapters of its requests."""
        if isinstance(self.load, RequestPairs) and self.load.warm_up is not None:
            return tuple(dict.fromkeys((self.load.warm_up, *self.load.adapters)))
        return self.load.adapters

    @property
    def clients(self) -> int:
        """Maximum number of concurrent requests."""
        return self.load.clients

    @property
    def context(self) -> int:
        """Tokens of the longest prompt and its answer, generously."""
        words = self.load.prompt_words + self.load.system_words
        # These words are a token each in most vocabularies; 64 more are the template and the request's number.
        return -(-(words * 5 // 4 + 64 + self.load.max_tokens) // 128) * 128

    def with_rate_of(self, figures: dict[str, Any]) -> Workload:
        """This job with its requests arriving at a share of what the job that sets the pace answered a second."""
        assert isinstance(self.load, Load)
        return replace(self, load=replace(self.load, rate=_RATE_SHARE * figures["req_s"]))


def make_workloads(
    keys: Iterable[str], *, requests: int | None = None, max_tokens: int | None = None, registered: int = 2000
) -> list[Workload]:
    """The jobs of these names, each after the one that it is paced by. Raises ``BenchmarkError`` for an unknown name.

    ``requests`` and ``max_tokens`` replace every job's own; ``registered`` is how many adapters ``zipf`` draws from.
    """
    jobs: dict[str, Workload] = {}
    for key in keys:
        job = _job(key, registered)
        for made in (_job(job.rate_from, registered), job) if job.rate_from else (job,):
            jobs.setdefault(made.key, made)
    # Each has prompts of its own: what one leaves in a prefix cache is of no use to the next.
    return [_sized(job, 1000 * index, requests, max_tokens) for index, job in enumerate(jobs.values())]


def _sized(job: Workload, first_number: int, requests: int | None, max_tokens: int | None) -> Workload:
    what = replace(job.load, first_number=first_number, max_tokens=max_tokens or job.load.max_tokens)
    if requests is not None:
        what = (
            replace(what, count=max(1, requests // 2))
            if isinstance(what, RequestPairs)
            else replace(what, requests=requests)
        )
    return replace(job, load=what)


def _job(key: str, registered: int) -> Workload:
    if matched := re.fullmatch(r"([1-9]\d{0,3})x(0|[1-9]\d{0,2})(-[a-z1-]+)?", key):
        clients, adapters, option = int(matched[1]), int(matched[2]), matched[3]
        if option and option not in _OPTIONS:
            raise BenchmarkError(f"There is no load {key!r}: after {clients}x{adapters} comes {', '.join(_OPTIONS)}.")
        fields, said = _OPTIONS[option] if option else ({}, "")
        return Workload(
            key=key,
            title=", ".join((_count(clients, "client"), _count(adapters, "adapter"), *([said] if said else []))),
            load=_load(clients=clients, adapters=named("a", adapters), **fields),
            baseline=key.removesuffix(option) if option else f"{clients}x0" if adapters else None,
        )
    mixed: dict[str, Any] = {"clients": 16, "adapters": named("a", 8)}
    match key:
        case "short":
            load, title = _load(**mixed, prompt_words=8), "prompts of 8 words"
        case "long":
            load, title = _load(**mixed, prompt_words=600), "prompts of 600 words"
        case "system":
            load, title = _load(**mixed, system_words=300), "a shared system prompt of 300 words"
        case "poisson":
            load, title = _load(**mixed), f"arriving at random, at {100 * _RATE_SHARE:.0f} % of what 16 clients get"
            return Workload(key=key, title=f"8 adapters, {title}", load=load, rate_from="16x8")
        case "zipf":
            load = _load(clients=16, adapters=named("z", registered), requests=256, zipf=True, warm_adapters=False)
            title = f"16 clients, {registered:,} small adapters, Zipf"
            return Workload(key=key, title=title, load=load, baseline="16x8", many=True)
        case "cold":
            pairs = RequestPairs(count=16, adapters=named("c", 16), warm_up="a0")
            return Workload(key=key, title="an adapter's first request", load=pairs, cold=True)
        case "prefix":
            pairs = RequestPairs(count=8, adapters=named("a", 1), warm_up="a0", system_words=1000)
            return Workload(key=key, title="a prefix of 1,000 words again", load=pairs)
        case _:
            raise BenchmarkError(
                f"There is no load {key!r}. Take {', '.join(SPECIAL)}, or CLIENTSxADAPTERS, also with "
                f"{', '.join(_OPTIONS)}, like {', '.join(QUICK)}."
            )
    return Workload(key=key, title=f"16 clients, 8 adapters, {title}", load=load, baseline="16x8")


def _load(*, clients: int, requests: int | None = None, **more: Any) -> Load:
    """Enough requests that the start and the end of a load, when fewer are in flight, do not count for much."""
    enough = {1: 16, 4: 32, 16: 64}.get(clients, 2 * clients)
    return Load(clients=clients, requests=requests or enough, warm_up=True, **more)


def _count(number: int, thing: str) -> str:
    return f"{number or 'no'} {thing}{'' if number in (0, 1) else 's'}"
