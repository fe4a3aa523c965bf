"""Labelled queries, split so that none is used for two purposes."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.harness.errors import BenchmarkError
from graftwork.clients.demo.queries import Query

ROUNDS: Final = 3


@dataclass(frozen=True, kw_only=True)
class LoopBenchmarkSizes:
    """The sizes of the benchmark. ``epochs`` and ``rates`` are those of the three versions."""

    rows: int = 480
    held_out: int = 4
    """Of each label."""

    gates: int = 1
    """Queries of each label for the evaluation of each candidate."""

    asked: int = 400
    """Queries of users before each of the later versions."""

    epochs: tuple[int, ...] = (4, 2, 2)
    rates: tuple[float, ...] = (5e-4, 2e-4, 2e-4)
    warmup: float = 0.1
    batch_size: int = 8


@dataclass(frozen=True, kw_only=True)
class LoopDataSplit:
    """Disjoint sets of queries, shuffled. ``asked`` has one set for each round of users."""

    held_out: tuple[Query, ...]
    gates: tuple[Query, ...]
    rows: tuple[Query, ...]
    asked: tuple[tuple[Query, ...], ...]


# --- queries ----------------------------------------------------------------------------------------------------------


def split_data(queries: Sequence[Query], sizes: LoopBenchmarkSizes, *, seed: int) -> LoopDataSplit:
    """Split queries: held-out queries, gates and first rows have the same number for each label; the rest is for users.

    Queries that differ in case, white space and punctuation only count as one.

    Raises:
        BenchmarkError: if there are not enough queries.
    """
    once = {re.sub(r"\W+", " ", query.text.casefold()).strip(): query for query in queries}
    by_label: defaultdict[str, list[Query]] = defaultdict(list)
    for query in once.values():
        by_label[query.label].append(query)
    drawn = random.Random(seed)
    fixed = sizes.held_out + sizes.gates
    each = sizes.rows // len(by_label)
    held_out, gates, rows, left = [], [], [], []
    for label in sorted(by_label):
        some = by_label[label]
        if len(some) <= fixed + each:
            raise BenchmarkError(f"{label} has {len(some)} queries, and {fixed + each + 1} are needed: ask for less.")
        drawn.shuffle(some)
        held_out += some[: sizes.held_out]
        gates += some[sizes.held_out : fixed]
        rows += some[fixed : fixed + each]
        left += some[fixed + each :]
    drawn.shuffle(left)
    missing = sizes.rows - len(rows)
    rows += left[:missing]
    asked = [left[start : start + sizes.asked] for start in range(missing, len(left), sizes.asked)][: ROUNDS - 1]
    if [len(hand) for hand in asked] != [sizes.asked] * (ROUNDS - 1):
        raise BenchmarkError(f"There are {len(left) - missing} queries left for users to ask: let them ask fewer.")
    for hand in (held_out, gates, rows):
        drawn.shuffle(hand)
    return LoopDataSplit(held_out=tuple(held_out), gates=tuple(gates), rows=tuple(rows), asked=tuple(map(tuple, asked)))
