"""``python -m benchmarks.experiments`` prints the tables of docs/experiments.md as Markdown.

Every figure is of many runs of the same code that judges real experiments, read after every single observation; beside
it stands what most people do, a z-test read as often.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence

from benchmarks.experiments.covariates import false_winners_with_past, power_with_past, seconds_with_past
from benchmarks.experiments.joining import arms_that_join
from benchmarks.experiments.overhead import costs
from benchmarks.experiments.two_arms import false_winners, guardrails, mismatches, power


def main(arguments: Sequence[str] | None = None) -> None:
    """Print all tables as Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.experiments", description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=2000, help="experiments per line of a table (default: 2000)")
    parser.add_argument("--units", type=int, default=10_000, help="units in each at most (default: 10000)")
    given = parser.parse_args(arguments)
    tables: list[tuple[str, Callable[[], Iterable[str]]]] = [
        ("False winners", lambda: false_winners(given.runs, given.units)),
        ("Power and median number of units", lambda: power(given.runs, given.units)),
        ("False winners, with covariates", lambda: false_winners_with_past(given.runs, given.units)),
        ("Power, with covariates", lambda: power_with_past(given.runs, given.units)),
        ("Seconds, with covariates", lambda: seconds_with_past(given.runs, given.units)),
        ("Arms that join", lambda: arms_that_join(given.runs, given.units)),
        ("Units that get lost", lambda: mismatches(given.runs, given.units)),
        ("What it costs", lambda: costs(given.units)),
        ("Guardrails", lambda: guardrails(max(given.runs // 4, 1))),
    ]
    began = time.monotonic()
    for title, lines in tables:
        print(f"### {title}\n")
        for line in lines():
            print(line, flush=True)
        print()
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
