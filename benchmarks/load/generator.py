"""Load on an OpenAI-style server: N clients in flight, each request naming the next of the given adapters.

    python -m benchmarks.load.generator http://127.0.0.1:8000 --models a0,a1,a2 --clients 16 --requests 64

Prints one JSON line: output tokens a second, time to the first token (``ttft``), time between tokens (``itl``), errors.
With ``--rate`` requests arrive at random (Poisson) instead of when a client is free. Works with any server that streams
OpenAI's chat completions and takes ``ignore_eos``; ``--lora-ids`` asks in llama.cpp's way.

Request number n always has the same prompt. Two loads on one server whose numbers overlap can meet each other's prompts
in a prefix cache: give them ``first_number``s far apart.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import httpx

_WORDS = (
    "the of and to in is you that it he was for on are as with his they I at be this have from or one had by word but "
    "not what all were we when your can said there use an each which she do how their if will up other about out many "
    "then them these so some her would make like him into time has look two more write go see number no way could "
    "people my than first water been call who oil its now find long down day did get come made may part"
)
WORDS = _WORDS.split()


@dataclass(frozen=True, kw_only=True)
class Load:
    """A load on a system.

    Attributes:
        clients: number of concurrent requests; with ``rate`` the maximum that is expected.
        adapters: the adapters, which are used in turn; empty for the base.
        requests: number of requests.
        prompt_words: number of words in the random part of each prompt.
        max_tokens: length of each answer, in tokens.
        temperature: sampling temperature.
        held: whether every second answer is held to a JSON schema, which no answer of this length fills.
        rate: mean number of requests per second that arrive at random (Poisson), instead of clients in a loop.
        system_words: number of words in a system message that all requests share.
        zipf: whether adapters are chosen at random, the n-th with a weight of 1/n, instead of in turn.
        first_number: number of the first request.
        warm_adapters: whether each adapter gets a request beforehand, so that loading is not measured.
        warm_up: whether all clients send a request beforehand, so that compilation for that many is not measured.
        label: a label for the results.
    """

    clients: int = 16
    adapters: tuple[str, ...] = ()
    requests: int = 64
    prompt_words: int = 60
    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    held: bool = False
    rate: float = 0.0
    system_words: int = 0
    zipf: bool = False
    first_number: int = 0
    warm_adapters: bool = True
    warm_up: bool = False
    label: str = ""

    @property
    def numbers(self) -> range:
        """The numbers of the requests."""
        return range(self.first_number, self.first_number + self.requests)

    @property
    def warm_up_number(self) -> int:
        """The number of a request that is not measured."""
        return self.first_number + 10**6


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """The address of a system, its API key, and ``fields``, which returns the fields of a request body that select an
    adapter, or the base for None."""

    url: str
    fields: Callable[[str | None], Mapping[str, Any]]
    key: str = "x"


@dataclass
class LoadStatistics:
    """Measurements of a load. Times are in seconds: to the first token, to the end, and between tokens."""

    tokens: int = 0
    first_seconds: list[float] = field(default_factory=list)
    total_seconds: list[float] = field(default_factory=list)
    gap_seconds: list[float] = field(default_factory=list)
    errors: list[tuple[int | str, str]] = field(default_factory=list)

    def summary(self, load: Load, seconds: float) -> dict[str, Any]:
        """Summarise a load that took ``seconds``, in JSON's types."""
        return {
            "label": load.label,
            "clients": load.clients,
            "adapters": len(load.adapters),
            "requests": load.requests,
            "out_tok_s": round(self.tokens / seconds, 1),
            "req_s": round(len(self.total_seconds) / seconds, 2),
            **milliseconds("ttft", self.first_seconds),
            **milliseconds("itl", self.gap_seconds),
            "wall_s": round(seconds, 2),
            "errors": len(self.errors),
            "error_sample": self.errors[:2],
        }


def messages(load: Load, number: int) -> list[dict[str, str]]:
    """Return the messages of the request with this number."""
    shared = words(load.system_words, seed="system") if load.system_words else ""
    return prompt(number, load.prompt_words, system=shared)


def prompt(number: int, prompt_words: int, *, system: str = "") -> list[dict[str, str]]:
    """Return messages with random words that depend on the number only, after a system message if there is one."""
    content = f"[{number}] {words(prompt_words, seed=number)} Write a long story about it."
    return [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": content}]


def words(count: int, *, seed: int | str) -> str:
    """Return random words."""
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(count))


def model_of(load: Load, number: int) -> str | None:
    """Return the adapter of the request with this number; None for the base."""
    if not load.adapters:
        return None
    if load.zipf:
        return random.Random(f"zipf {number}").choices(load.adapters, cum_weights=_zipf(len(load.adapters)))[0]
    return load.adapters[number % len(load.adapters)]


@cache
def _zipf(count: int) -> list[float]:
    """1, 1 + 1/2, 1 + 1/2 + 1/3, …"""
    return list(itertools.accumulate(1 / rank for rank in range(1, count + 1)))


#: Of answers that are held to a schema: a list so long that the tokens run out first.
_FORMAT = {
    "type": "json_schema",
    "json_schema": {
        "name": "parcels",
        "strict": True,
        "schema": {
            "type": "array",
            "minItems": 500,
            "items": {
                "type": "object",
                "properties": {
                    "place": {"type": "string", "maxLength": 40},
                    "state": {"enum": ["sent", "lost", "here"]},
                    "weight": {"type": "number", "minimum": 0, "maximum": 1000},
                    "fragile": {"type": ["boolean", "null"]},
                },
                "required": ["place", "state", "weight", "fragile"],
                "additionalProperties": False,
            },
        },
    },
}


async def ask(
    client: httpx.AsyncClient,
    endpoint: Endpoint,
    tally: LoadStatistics,
    model: str | None,
    chat: Sequence[Mapping[str, str]],
    *,
    max_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    held: bool = False,
) -> None:
    """Send a streamed request, and add its times, tokens or error to the statistics."""
    body = {
        "messages": chat,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
        **({"response_format": _FORMAT} if held else {}),
        **endpoint.fields(model),
    }
    began = time.perf_counter()
    stamps: list[float] = []
    usage: dict[str, Any] | None = None
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                tally.errors.append((response.status_code, (await response.aread())[:200].decode("utf8", "replace")))
                return
            async for line in response.aiter_lines():
                if not line.startswith("data:"):
                    continue
                data = line[5:].strip()
                if data == "[DONE]":
                    break
                event = json.loads(data)
                if "error" in event:  # a stream that broke off
                    tally.errors.append(("stream", json.dumps(event["error"])[:200]))
                    return
                usage = event.get("usage") or usage
                if event.get("choices") and (event["choices"][0].get("delta") or {}).get("content"):
                    stamps.append(time.perf_counter())
    except (httpx.HTTPError, json.JSONDecodeError) as error:
        tally.errors.append((type(error).__name__, str(error)[:200]))
        return
    ended = time.perf_counter()
    tally.tokens += (usage or {}).get("completion_tokens") or len(stamps)
    tally.first_seconds.append((stamps[0] if stamps else ended) - began)
    tally.total_seconds.append(ended - began)
    tally.gap_seconds += [after - before for before, after in itertools.pairwise(stamps)]


def connect(endpoint: Endpoint, clients: int) -> httpx.AsyncClient:
    """Return an HTTP client for so many concurrent requests."""
    return httpx.AsyncClient(
        base_url=endpoint.url,
        headers={"authorization": f"Bearer {endpoint.key}"},
        timeout=600,
        limits=httpx.Limits(max_connections=clients + 4),
        trust_env=False,  # the system is on this machine: no proxy of the environment
    )


async def run(endpoint: Endpoint, load: Load) -> dict[str, Any]:
    """Run a load, and return its summary. Failed requests are counted, not raised."""
    tally = LoadStatistics()
    async with connect(endpoint, load.requests if load.rate else load.clients) as client:
        warmed: Sequence[str | None] = load.adapters if load.warm_adapters else [model_of(load, load.first_number)]
        for model in warmed or [None]:
            chat = messages(load, load.warm_up_number)
            await ask(client, endpoint, LoadStatistics(), model, chat, max_tokens=4)
        if load.warm_up:
            rehearsed = range(load.warm_up_number + 1, load.warm_up_number + 1 + load.clients)
            warm = (
                ask(client, endpoint, LoadStatistics(), model_of(load, n), messages(load, n), max_tokens=4)
                for n in rehearsed
            )
            await asyncio.gather(*warm)
        numbers = iter(load.numbers)

        async def ask_for(number: int) -> None:
            model, chat = model_of(load, number), messages(load, number)
            await ask(
                client,
                endpoint,
                tally,
                model,
                chat,
                max_tokens=load.max_tokens,
                temperature=load.temperature,
                top_p=load.top_p,
                held=load.held and number % 2 == 1,
            )

        async def client_loop() -> None:
            for number in numbers:
                await ask_for(number)

        async def arrive(number: int, after: float) -> None:
            await asyncio.sleep(after)
            await ask_for(number)

        began = time.perf_counter()
        if load.rate:
            await asyncio.gather(
                *(arrive(number, after) for number, after in zip(numbers, arrivals(load), strict=False))
            )
        else:
            await asyncio.gather(*(client_loop() for _ in range(load.clients)))
        return tally.summary(load, time.perf_counter() - began)


def arrivals(load: Load) -> Iterator[float]:
    """Yield the arrival time of each request of a load with a ``rate``, in seconds; the same in every run."""
    rng = random.Random(0)
    return itertools.accumulate(rng.expovariate(load.rate) for _ in range(load.requests))


def milliseconds(name: str, seconds: Sequence[float]) -> dict[str, float | None]:
    """Return the median, 95th and 99th percentile in milliseconds: ``ttft_ms_p50``, …; None without measurements."""
    return {
        f"{name}_ms_p{round(100 * share)}": round(1e3 * value, 1)
        if (value := percentile(seconds, share)) is not None
        else None
        for share in (0.5, 0.95, 0.99)
    }


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the value below which a share of the values lies; None without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def by_name(model: str | None) -> dict[str, Any]:
    """Select an adapter by ``model``."""
    return {"model": model or "base"}


def by_lora_id(model: str | None) -> dict[str, Any]:
    """Select an adapter by llama.cpp's ``lora`` field: ``a3`` is the fourth of the adapters that it started with."""
    return {"model": "base", **({"lora": [{"id": int(model.lstrip("a")), "scale": 1.0}]} if model else {})}


def main() -> None:
    """Run the load of the command line, and print its summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--models", required=True, help="comma-separated")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--prompt-words", type=int, default=60)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second, instead of clients in a loop")
    parser.add_argument("--system-words", type=int, default=0, help="of a system message that all requests share")
    parser.add_argument("--body", type=json.loads, default={}, help="JSON that is merged into every request")
    parser.add_argument("--key", default="x")
    parser.add_argument("--label", default="")
    parser.add_argument("--lora-ids", action="store_true", help="name adapters by llama.cpp's `lora` field")
    parser.add_argument(
        "--touch", action=argparse.BooleanOptionalAction, default=True, help="ask every model once beforehand"
    )
    options = parser.parse_args()
    name = by_lora_id if options.lora_ids else by_name
    endpoint = Endpoint(url=options.url, key=options.key, fields=lambda model: {**name(model), **options.body})
    load = Load(
        clients=options.clients,
        adapters=tuple(options.models.split(",")),
        requests=options.requests,
        prompt_words=options.prompt_words,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        rate=options.rate,
        system_words=options.system_words,
        warm_adapters=options.touch,
        label=options.label,
    )
    print(json.dumps(asyncio.run(run(endpoint, load))))


if __name__ == "__main__":
    main()
