"""Experience replay: rows of earlier rounds are learned again beside new ones, against forgetting.

Rows are chosen by hashes: the same seed chooses the same rows in any process, and most of them again when rows are
added.
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
    """Sample rows of earlier rounds, stratified by round, kind and answer.

    Strata contribute in proportion to their size, rounded by largest remainders. Answers that only one row of a round
    has share a stratum.

    Args:
        older: the rows of each earlier round, by its name.
        num_new: number of new rows that are learned from.
        share: share of the sampled rows among all rows that are learned from, at least 0 and below 1.
        seed: of the sample.

    Returns:
        The sampled rows, shuffled; all rows of ``older`` if there are fewer than needed.

    Raises:
        ConfigurationError: if the share is out of bounds.
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
    """Apportion ``num`` in proportion to ``sizes``, by largest remainders; no quota exceeds its size."""
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
