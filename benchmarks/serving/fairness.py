"""Many keys beside one that floods the server: what each of them gets.

    GRAFTWORK_ADMIN_KEY=… graftwork serve
    python -m benchmarks.serving.fairness http://127.0.0.1:8000 --key …

One key holds many long streams open, and asks again after a second where it is refused. Each of the others asks one
small thing after another. Prints a Markdown table, or with ``--json`` a line of JSON for each key: answers, time to the
first token, tokens a second while the small keys ask, and how often the key was refused (429). The keys are made for
this, and revoked at its end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from benchmarks.harness.output import markdown_row
from benchmarks.load.generator import Endpoint, LoadStatistics, ask, by_name, connect, milliseconds, prompt
from graftwork.clients.client import Client

COLUMNS = {
    "key": "key",
    "requests": "answers",
    "ttft_ms_p50": "first token p50 ms",
    "ttft_ms_p95": "p95",
    "out_tok_s": "tokens/s",
    "refused": "429",
    "errors": "other errors",
}

#: After a refusal, as ``Retry-After`` says.
RETRY_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Who asks what.

    Attributes:
        model: what all ask.
        streams: how many streams the flooding key holds open.
        stream_tokens: the length of each, in tokens.
        small_keys: number of the other keys.
        requests: how many requests each of them sends, one after another.
        max_tokens: the length of their answers.
        settle_seconds: how long the flood runs before the others come.
    """

    model: str
    streams: int = 300
    stream_tokens: int = 4000
    small_keys: int = 9
    requests: int = 20
    max_tokens: int = 16
    settle_seconds: float = 10.0


@dataclass
class FloodStatistics:
    """What the flooding key has met so far: streams that ended, tokens, and refusals."""

    ended: int = 0
    tokens: int = 0
    refused: int = 0


@contextmanager
def new_keys(url: str, admin_key: str, count: int) -> Iterator[list[str]]:
    """Make keys for the block, and yield their secrets."""
    with Client(url, admin_key) as client:
        label = secrets.token_hex(4)
        keys = [client.keys.create(f"fairness-{label}-{number}") for number in range(count)]
        try:
            yield [key.secret or "" for key in keys]
        finally:
            for key in keys:
                client.keys.revoke(key.id)


async def measure(endpoints: Sequence[Endpoint], scenario: Scenario) -> list[dict[str, Any]]:
    """Measure a scenario.

    Args:
        endpoints: the server with the key that floods it, and with each of the others.
        scenario: who asks what.

    Returns:
        For each key its figures, by the names in ``COLUMNS``.
    """
    flood = FloodStatistics()
    async with connect(endpoints[0], scenario.streams) as client:
        streams = [
            asyncio.create_task(_keep_streaming(client, scenario, number, flood)) for number in range(scenario.streams)
        ]
        try:
            await asyncio.sleep(scenario.settle_seconds)
            before, began = flood.tokens, time.perf_counter()
            tallies = await asyncio.gather(
                *(_ask_one_by_one(endpoint, scenario, number) for number, endpoint in enumerate(endpoints[1:], 1))
            )
            seconds = time.perf_counter() - began
            flood_tokens = flood.tokens - before
        finally:
            for task in streams:
                task.cancel()
            await asyncio.gather(*streams, return_exceptions=True)
    rows: list[dict[str, Any]] = [
        {
            "key": "flood",
            "requests": flood.ended,
            **milliseconds("ttft", []),
            "out_tok_s": round(flood_tokens / seconds, 1),
            "refused": flood.refused,
            "errors": 0,
        }
    ]
    return (
        rows
        + [_row(f"small {number}", [tally], seconds) for number, tally in enumerate(tallies, 1)]
        + [_row("all small", tallies, seconds)]
    )


async def _keep_streaming(client: httpx.AsyncClient, scenario: Scenario, number: int, flood: FloodStatistics) -> None:
    """Hold one stream open, again and again, until cancelled."""
    body = {
        "model": scenario.model,
        "messages": prompt(-1 - number, 30),
        "max_tokens": scenario.stream_tokens,
        "stream": True,
        "ignore_eos": True,
    }
    while True:
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code == 200:
                async for line in response.aiter_lines():
                    flood.tokens += '"content":' in line
                flood.ended += 1
                continue
        flood.refused += response.status_code == 429
        await asyncio.sleep(RETRY_SECONDS)


async def _ask_one_by_one(endpoint: Endpoint, scenario: Scenario, number: int) -> LoadStatistics:
    tally = LoadStatistics()
    async with connect(endpoint, 1) as client:
        for index in range(scenario.requests):
            chat = prompt(1000 * number + index, 30)
            await ask(client, endpoint, tally, scenario.model, chat, max_tokens=scenario.max_tokens)
    return tally


def _row(key: str, tallies: Sequence[LoadStatistics], seconds: float) -> dict[str, Any]:
    """The figures of one key, or of several together."""
    statuses = [status for tally in tallies for status, _ in tally.errors]
    return {
        "key": key,
        "requests": sum(len(tally.total_seconds) for tally in tallies),
        **milliseconds("ttft", [first for tally in tallies for first in tally.first_seconds]),
        "out_tok_s": round(sum(tally.tokens for tally in tallies) / seconds, 1),
        "refused": statuses.count(429),
        "errors": len(statuses) - statuses.count(429),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the scenario of the command line, and print what each key got."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--key", required=True, help="an admin's, to make the keys with")
    parser.add_argument("--model", help="adapter or base; default: the base")
    parser.add_argument("--streams", type=int, default=Scenario.streams, help="of the key that floods the server")
    parser.add_argument("--stream-tokens", type=int, default=Scenario.stream_tokens)
    parser.add_argument("--small-keys", type=int, default=Scenario.small_keys)
    parser.add_argument("--requests", type=int, default=Scenario.requests, help="of each small key")
    parser.add_argument("--max-tokens", type=int, default=Scenario.max_tokens, help="of each small answer")
    parser.add_argument("--settle-seconds", type=float, default=Scenario.settle_seconds)
    parser.add_argument("--json", action="store_true")
    options = vars(parser.parse_args(arguments))
    url, admin_key, as_json = options.pop("url"), options.pop("key"), options.pop("json")
    if options["model"] is None:
        with Client(url, admin_key) as client:
            options["model"] = client.models().data[0].id
    scenario = Scenario(**options)
    with new_keys(url, admin_key, 1 + scenario.small_keys) as made:
        endpoints = [Endpoint(url=url, key=key, fields=by_name) for key in made]
        rows = asyncio.run(measure(endpoints, scenario))
    if not as_json:
        print(markdown_row(list(COLUMNS.values())))
        print(markdown_row(["---"] * len(COLUMNS)))
    for row in rows:
        print(
            json.dumps(row) if as_json else markdown_row(["–" if row[name] is None else row[name] for name in COLUMNS])
        )


if __name__ == "__main__":
    main()
