"""Rows of older rounds that are learned again beside new ones, so that what was learned is not forgotten.

Chosen by hashes: the same seed chooses the same rows in any process, and most of them again when rows are added.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence

from graftwork.adapters.errors import ConfigurationError
from graftwork.training.data.row import Row

DEFAULT_REPLAY_SHARE = 0.25


def sample_replay(
    older: Mapping[str, Sequence[Row]], num_new: int, *, share: float = DEFAULT_REPLAY_SHARE, seed: int = 0
) -> list[Row]:
    """Rows of ``older`` rounds, by the rounds' names: so many that they are ``share`` of all that is learned from,
    beside ``num_new`` new ones; every one, if there are fewer.

    Stratified: every round, and in a round every kind and every answer that several rows have, gives in proportion to
    its rows, and the most even way of rounding is taken. Raises ConfigurationError for a share below 0, or 1 and above.
    """
    if not 0 <= share < 1:
        raise ConfigurationError(f"The share of replayed rows is {share:g}: at least 0, below 1.", param="replay")
    strata: defaultdict[Hashable, list[Row]] = defaultdict(list)
    for name, rows in older.items():
        answers = Counter(row.answer for row in rows)
        for row in rows:
            strata[name, row.kind, row.answer if answers[row.answer] > 1 else ""].append(row)
    num_older = sum(map(len, strata.values()))
    num = min(round(num_new * share / (1 - share)), num_older)
    chosen: list[Row] = []
    for stratum, quota in _quotas({key: len(rows) for key, rows in strata.items()}, num).items():
        ranked = sorted(strata[stratum], key=lambda row: _rank(seed, row))
        chosen += ranked[:quota]
    return sorted(chosen, key=lambda row: _rank(seed, row))


def _quotas(sizes: Mapping[Hashable, int], num: int) -> dict[Hashable, int]:
    """``num`` shared out in proportion to ``sizes``, by largest remainders; none gives more than it has."""
    total = sum(sizes.values())
    if not total:
        return {}
    exact = {key: num * size / total for key, size in sizes.items()}
    quotas = {key: int(share) for key, share in exact.items()}
    by_remainder = sorted(sizes, key=lambda key: (quotas[key] - exact[key], -sizes[key], str(key)))
    for key in by_remainder[: num - sum(quotas.values())]:
        quotas[key] += 1
    return quotas


def _rank(seed: int, row: Row) -> bytes:
    return hashlib.blake2b(seed.to_bytes(8, "big", signed=True) + row.digest(), digest_size=16).digest()
