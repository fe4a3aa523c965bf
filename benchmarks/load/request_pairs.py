"""Pairs of requests, to measure what caches save: the time to the first token of the first and of the second request.

For adapters, the first request finds its adapter on disk and the second in memory. For prefixes, both begin with the
same long system message. There is one client.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.load.generator import Endpoint, LoadStatistics, ask, connect, milliseconds, prompt, words


@dataclass(frozen=True, kw_only=True)
class RequestPairs:
    """A load of request pairs.

    Attributes:
        count: number of pairs.
        adapters: the adapters, one for each pair in turn; empty for the base.
        system_words: number of words in a system message that is the same within a pair only.
        prompt_words: number of words in the random part of each prompt.
        max_tokens: length of each answer, in tokens.
        first_number: number of the first request.
        warm_up: the adapter of a request before all pairs; None for the base.
        clients: number of concurrent requests.
    """

    count: int
    adapters: tuple[str, ...] = ()
    system_words: int = 0
    prompt_words: int = 60
    max_tokens: int = 8
    first_number: int = 0
    warm_up: str | None = None

    clients: int = 1


async def run_pairs(endpoint: Endpoint, pairs: RequestPairs) -> dict[str, Any]:
    """Run the pairs, and return the times to the first token of first and second requests in milliseconds."""
    warm, first, again = LoadStatistics(), LoadStatistics(), LoadStatistics()

    async with connect(endpoint, 1) as client:

        async def one(tally: LoadStatistics, model: str | None, pair: int, offset: int) -> None:
            number = pairs.first_number + 2 * pair + offset
            system = words(pairs.system_words, seed=f"pair {pairs.first_number} {pair}") if pairs.system_words else ""
            chat = prompt(number, pairs.prompt_words, system=system)
            await ask(client, endpoint, tally, model, chat, max_tokens=pairs.max_tokens)

        await one(warm, pairs.warm_up, -1, 0)
        for pair in range(pairs.count):
            model = pairs.adapters[pair % len(pairs.adapters)] if pairs.adapters else None
            await one(first, model, pair, 0)
            await one(again, model, pair, 1)
    return summary(pairs, first, again)


def summary(pairs: RequestPairs, first: LoadStatistics, again: LoadStatistics) -> dict[str, Any]:
    """Summarise the statistics of first and second requests, in JSON's types."""
    errors = [*first.errors, *again.errors]
    return {
        "clients": 1,
        "adapters": len(pairs.adapters),
        "requests": 2 * pairs.count,
        **milliseconds("first_ttft", first.first_seconds),
        **milliseconds("again_ttft", again.first_seconds),
        **_gain(first.first_seconds, again.first_seconds),
        "errors": len(errors),
        "error_sample": errors[:2],
    }


def _gain(first: Sequence[float], again: Sequence[float]) -> dict[str, float]:
    """Compare the median times to the first token: their difference in milliseconds, and their ratio."""
    if not first or not again:
        return {}
    middle = [sorted(seconds)[len(seconds) // 2] for seconds in (first, again)]
    return {
        "first_more_ms": round(1e3 * (middle[0] - middle[1]), 1),
        "again_share": round(middle[1] / middle[0], 3),
    }
