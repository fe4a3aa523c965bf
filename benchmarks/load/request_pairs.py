"""Two requests one after the other, and how much sooner the second is answered: for what is kept between requests.

Of adapters: the first request finds its adapter on disk, the second in memory. Of prefixes: both begin with the same
long system message. One client, so that nothing else is waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.load.generator import Endpoint, LoadStatistics, ask, connect, milliseconds, prompt, words


@dataclass(frozen=True, kw_only=True)
class RequestPairs:
    """
    Attributes:
        adapters: each pair names the next; none: the base.
        system_words: of a system message that a pair shares and no other pair has.
    """

    count: int
    adapters: tuple[str, ...] = ()
    system_words: int = 0
    prompt_words: int = 60
    max_tokens: int = 8
    first_number: int = 0
    warm_up: str | None = None
    """What the request before all pairs names."""
    clients: int = 1


async def run_pairs(endpoint: Endpoint, pairs: RequestPairs) -> dict[str, Any]:
    """Carry them out and say how long each first and each second request waited for its first token."""
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
    """The first request's wait beside the second's, in the median: how much more, and how many times as much."""
    if not first or not again:
        return {}
    middle = [sorted(seconds)[len(seconds) // 2] for seconds in (first, again)]
    return {
        "first_more_ms": round(1e3 * (middle[0] - middle[1]), 1),
        "again_share": round(middle[1] / middle[0], 3),
    }
