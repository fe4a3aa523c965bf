"""The curve of working sets: speed and time to the first token as the adapters in use outgrow the device.

    graftwork serve --slots 16
    python -m benchmarks.serving.working_sets http://127.0.0.1:8000 --slots 16 --base BASE_FOLDER --out DIR

For half, one, two and four times the slots the same load: so many adapters take turns, the worst order for a server
that keeps those it used last. Adapters ``a0``, ``a1``, … that the server does not have are written to DIR and pushed.
Prints a Markdown table; with ``--json`` a line of JSON for each load.

Beside it stand the adapters moved off the device and read from the store for each request, as ``/metrics`` counts them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.harness.adapter_folders import AdapterFolders, named
from benchmarks.harness.output import markdown_row
from benchmarks.load.generator import Endpoint, Load, run
from graftwork.clients.client import Client

COLUMNS = {
    "times": "slots ×",
    "adapters": "adapters",
    "out_tok_s": "tokens/s",
    "ttft_ms_p50": "TTFT p50 ms",
    "ttft_ms_p95": "p95",
    "itl_ms_p50": "between tokens p50 ms",
    "itl_ms_p99": "p99",
    "moves": "moved off / request",
    "loads": "read / request",
    "errors": "errors",
}


def push_missing(endpoint: Endpoint, wanted: Sequence[str], folders: AdapterFolders | None) -> None:
    """Push the adapters that the server does not have; without ``folders`` it must have all of them."""
    with Client(endpoint.url, endpoint.key) as client:
        have: set[str] = set()
        after: str | None = None
        while page := client.adapters.list(limit=100, after=after):
            have |= {adapter.name for adapter in page}
            if not page.has_more:
                break
            after = page.data[-1].name
        for name in wanted:
            if name in have:
                continue
            if folders is None:
                raise SystemExit(f"the server has no adapter {name}: give --base and --out to push it")
            client.adapters.push(name, folders.folders([name])[name])


def counters(endpoint: Endpoint) -> dict[str, float]:
    """Read the server's metrics that have no labels, by name."""
    headers = {"authorization": f"Bearer {endpoint.key}"}
    text = httpx.get(f"{endpoint.url}/metrics", headers=headers, timeout=30, trust_env=False).raise_for_status().text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {sample.name: sample.value for sample in samples if not sample.labels}


def measure(endpoint: Endpoint, slots: int, times: Sequence[float], load: Load) -> Iterator[dict[str, Any]]:
    """Measure a load with working sets of different sizes, one after another.

    Args:
        endpoint: the server.
        slots: number of the server's slots.
        times: sizes of the working sets, as multiples of ``slots``.
        load: the load; its adapters are replaced.

    Yields:
        The summary of each load, with evictions and loads of adapters per request.
    """
    for index, factor in enumerate(times):
        adapters = named("a", max(1, round(factor * slots)))
        # No prompt twice: what one load leaves in the prefix cache must not help the next.
        this = replace(load, adapters=adapters, first_number=index * 10 * max(1000, load.requests))
        before = counters(endpoint)
        figures = asyncio.run(run(endpoint, this))
        after = counters(endpoint)
        num_asked = load.requests + len(adapters)  # each is asked once beforehand
        yield {
            "times": factor,
            **figures,
            **{
                short: round((after[name] - before[name]) / num_asked, 2)
                for short, name in (
                    ("moves", "graftwork_adapter_evictions_total"),
                    ("loads", "graftwork_adapter_loads_total"),
                )
            },
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the working sets of the command line, and print their summaries."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--slots", type=int, default=16, help="as the server was told")
    parser.add_argument("--times", default="0.5,1,2,4", help="working sets, in slots")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=96, help="for each working set")
    parser.add_argument("--prompt-words", type=int, default=60)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--zipf", action="store_true", help="draw adapters, the n-th with a weight of 1/n")
    parser.add_argument("--base", type=Path, help="folder of the base, to make adapters for")
    parser.add_argument("--out", type=Path, help="where adapters are kept that were made")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--key", default="x")
    options = parser.parse_args(arguments)
    times = [float(factor) for factor in options.times.split(",")]
    endpoint = Endpoint(url=options.url, key=options.key, fields=_by_name)
    folders = AdapterFolders(options.base, options.out) if options.base and options.out else None
    push_missing(endpoint, named("a", max(1, round(max(times) * options.slots))), folders)
    load = Load(
        clients=options.clients,
        requests=options.requests,
        prompt_words=options.prompt_words,
        max_tokens=options.max_tokens,
        zipf=options.zipf,
    )
    if not options.json:
        print(markdown_row(list(COLUMNS.values())))
        print(markdown_row(["---"] * len(COLUMNS)))
    for figures in measure(endpoint, options.slots, times, load):
        print(json.dumps(figures) if options.json else markdown_row([figures[name] for name in COLUMNS]), flush=True)


def _by_name(model: str | None) -> Mapping[str, Any]:
    return {"model": model}


if __name__ == "__main__":
    main()
