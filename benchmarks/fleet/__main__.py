"""``python -m benchmarks.fleet``: routing over a fleet of engines, on a simulated clock.

    python -m benchmarks.fleet --json fleet.json --markdown fleet.md

Routing and adapter cache are those that serve; steps take the time that was measured on a real engine. Beside them:
random choice, the least loaded replica, and Ray Serve's multiplexing. The default is 1,000 engines and 100,000
adapters: minutes for each policy. What is printed does not depend on the machine.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path

from benchmarks.fleet.policies import POLICIES
from benchmarks.fleet.simulation import Fleet, PartReport
from benchmarks.fleet.workload import FleetSizes, StepTimes
from benchmarks.harness.output import markdown_row, write_text

HEADINGS = (
    "policy",
    "part",
    "hits",
    "first token p50 ms",
    "p99 ms",
    "p99 frequent / rare",
    "tokens/s",
    "of one adapter",
    "peak / mean",
    "taken over",
    "lost",
    "engines",
)


def simulate(policy: str, sizes: FleetSizes, times: StepTimes) -> list[PartReport]:
    """All parts of one policy's run."""
    return Fleet(policy, sizes, times).run()


def one_adapter(sizes: FleetSizes, times: StepTimes) -> float:
    """Tokens per second of an engine of a small fleet whose users all ask for one adapter."""
    replicas = min(sizes.replicas, 20)
    small = replace(sizes, replicas=replicas, adapters=1, requests=400 * replicas, disturbed=0, burst_share=0.0)
    return simulate("least loaded", small, times)[0].tokens_per_second


def table(results: dict[str, list[PartReport]], alone: float) -> list[str]:
    """The results as lines of a Markdown table."""
    lines = [markdown_row(HEADINGS), markdown_row(["---"] * len(HEADINGS))]
    for policy, parts in results.items():
        for of in parts:
            cells = (
                policy,
                of.part,
                f"{of.hits:.1%}",
                f"{of.first_token_p50_ms:.0f}",
                f"{of.first_token_p99_ms:.0f}",
                f"{of.frequent_p99_ms:.0f} / {of.rare_p99_ms:.0f}",
                f"{of.tokens_per_second:.0f}",
                f"{of.tokens_per_second / alone:.1%}",
                f"{of.peak:.2f}",
                of.taken_over,
                of.lost,
                f"{of.replicas:.0f}",
            )
            lines.append(markdown_row(cells))
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate, print the table, write the files."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description=__doc__.split("\n")[0])
    defaults = FleetSizes()
    for entry in fields(FleetSizes):
        value = getattr(defaults, entry.name)
        parser.add_argument(f"--{entry.name.replace('_', '-')}", type=type(value), default=value)
    for entry in fields(StepTimes):
        parser.add_argument(
            f"--{entry.name.replace('_', '-')}-ms", type=float, default=getattr(StepTimes(), entry.name)
        )
    parser.add_argument("--policies", default=",".join(POLICIES), help="separated by commas")
    parser.add_argument("--processes", type=int, default=1, help="policies that are simulated at once")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args(arguments)
    sizes = FleetSizes(**{entry.name: getattr(given, entry.name) for entry in fields(FleetSizes)})
    times = StepTimes(**{entry.name: getattr(given, f"{entry.name}_ms") for entry in fields(StepTimes)})
    alone = one_adapter(sizes, times)
    results: dict[str, list[PartReport]] = {}
    names = given.policies.split(",")
    with ProcessPoolExecutor(given.processes) as pool:
        for name, parts in zip(names, pool.map(partial(simulate, sizes=sizes, times=times), names), strict=True):
            results[name] = parts
            print(f"{name}: {parts[0].hits:.1%} hits", file=sys.stderr, flush=True)
    lines = table(results, alone)
    print("\n".join(lines))
    if given.markdown is not None:
        write_text(given.markdown, "\n".join(lines) + "\n")
    if given.json is not None:
        report = {
            "sizes": asdict(sizes),
            "times": asdict(times),
            "one_adapter_tokens_per_second": alone,
            "policies": {name: [asdict(part) for part in parts] for name, parts in results.items()},
        }
        write_text(given.json, json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
