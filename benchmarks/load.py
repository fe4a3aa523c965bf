"""Load on an OpenAI-style server: N clients in flight, each request naming the next of the given models.

    python -m benchmarks.load http://127.0.0.1:8000 --models a0,a1,a2 --clients 16 --requests 64

Prints one JSON line: output tokens a second, time to the first token, time between tokens, errors. With ``--rate`` the
requests arrive at random (Poisson) instead of when a client is free. Works with any server that streams OpenAI's chat
completions and takes ``ignore_eos``.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx

WORDS = ("time", "people", "water", "day", "world", "house", "light", "city", "morning", "river", "garden", "letter")


@dataclass
class Tally:
    tokens: int = 0
    first_seconds: list[float] = field(default_factory=list)
    gap_seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


async def ask(client: httpx.AsyncClient, options: argparse.Namespace, number: int, model: str, tally: Tally) -> None:
    """One streamed request of its own prompt, timed."""
    rng = random.Random(number)
    words = " ".join(rng.choice(WORDS) for _ in range(options.prompt_words))
    body = {
        "model": model,
        "messages": [{"role": "user", "content": f"[{number}] {words} Write a long story about it."}],
        "max_tokens": options.max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }
    began = time.perf_counter()
    stamps: list[float] = []
    usage = 0
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                tally.errors.append(f"{response.status_code} {(await response.aread())[:200]!r}")
                return
            async for line in response.aiter_lines():
                if not line.startswith("data:") or line.endswith("[DONE]"):
                    continue
                event = json.loads(line[5:])
                if "error" in event:
                    tally.errors.append(event["error"]["message"])
                    return
                usage = (event.get("usage") or {}).get("completion_tokens", usage)
                if event["choices"] and event["choices"][0]["delta"].get("content"):
                    stamps.append(time.perf_counter())
    except httpx.HTTPError as error:
        tally.errors.append(f"{type(error).__name__}: {error}")
        return
    tally.tokens += usage
    tally.first_seconds.append((stamps[0] if stamps else time.perf_counter()) - began)
    tally.gap_seconds += [after - before for before, after in itertools.pairwise(stamps)]


async def run(options: argparse.Namespace) -> dict[str, object]:
    models = options.models.split(",")
    tally = Tally()
    headers = {"authorization": f"Bearer {options.key}"}
    async with httpx.AsyncClient(base_url=options.url, headers=headers, timeout=600) as client:
        for model in models:  # every adapter once, so that loading is not what is measured
            await ask(client, argparse.Namespace(**{**vars(options), "max_tokens": 2}), -1, model, Tally())
        numbers = iter(range(options.requests))

        async def client_loop() -> None:
            for number in numbers:
                await ask(client, options, number, models[number % len(models)], tally)

        async def arrivals() -> None:
            rng = random.Random(0)
            async with asyncio.TaskGroup() as group:
                for number in numbers:
                    group.create_task(ask(client, options, number, models[number % len(models)], tally))
                    await asyncio.sleep(rng.expovariate(options.rate))

        began = time.perf_counter()
        await (arrivals() if options.rate else asyncio.gather(*(client_loop() for _ in range(options.clients))))
        seconds = time.perf_counter() - began
    return {
        "clients": options.clients,
        "models": len(models),
        "requests": options.requests,
        "tokens_per_second": round(tally.tokens / seconds, 1),
        "first_token_ms": milliseconds(tally.first_seconds),
        "between_tokens_ms": milliseconds(tally.gap_seconds),
        "errors": len(tally.errors),
        "first_error": tally.errors[0] if tally.errors else None,
    }


def milliseconds(seconds: Sequence[float]) -> dict[str, float] | None:
    """Median, 95th and 99th percentile."""
    ordered = sorted(seconds)
    if not ordered:
        return None
    return {f"p{q}": round(1e3 * ordered[min(len(ordered) - 1, len(ordered) * q // 100)], 1) for q in (50, 95, 99)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--models", required=True, help="comma-separated")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--prompt-words", type=int, default=60)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second, instead of clients in a loop")
    parser.add_argument("--key", default="none")
    print(json.dumps(asyncio.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
