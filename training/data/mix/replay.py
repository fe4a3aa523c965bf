"""Experience replay: rows of earlier rounds are learned again beside new ones, against forgetting.

Rows are chosen by hashes: the same seed and turn choose the same rows in any process, and most of them again when rows
are added.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from graftwork.adapters.errors import ConfigurationError
from graftwork.training.data.row import Row

DEFAULT_REPLAY_SHARE: Final = 0.25

Stratum = tuple[str, str, str]
"""The kind, the answer and the round of rows."""

_GOLDEN: Final = (math.sqrt(5) - 1) / 2


def sample_replay(
    older: Mapping[str, Sequence[Row]],
    num_new: int,
    *,
    share: float = DEFAULT_REPLAY_SHARE,
    seed: int = 0,
    turn: int = 0,
) -> list[Row]:
    """Sample rows of earlier rounds, stratified by kind, answer and round; see `sample_rows`.

    Args:
        older: the rows of each earlier round, by its name.
        num_new: number of new rows that are learned from.
        share: share of the sampled rows among all rows that are learned from, at least 0 and below 1.
        seed: of the sample.
        turn: which round this is: with every turn others are chosen, so that all come in turn.

    Returns:
        The sampled rows, shuffled; all rows of ``older`` if there are fewer than needed.

    Raises:
        ConfigurationError: if the share is out of bounds.
    """
    if not 0 <= share < 1:
        raise ConfigurationError(f"The share of replayed rows is {share:g}: at least 0, below 1.", param="replay")
    return sample_rows(older, round(num_new * share / (1 - share)), seed=seed, turn=turn)


def split_learned(
    rows: Sequence[Row], learned: Collection[int], *, fewest: int, seed: int = 0, turn: int = 0
) -> tuple[list[Row], list[Row]]:
    """Divide the rows of a round into those that are learned now and those that were learned before.

    What was learned before is learned again as far as the round has fewer than ``fewest`` rows without it, or where a
    new row asks the same question.

    Args:
        rows: the rows of the round.
        learned: `Row.same_key` of the rows that were learned before.
        fewest: number of rows up to which all are learned.
        seed: as for `sample_replay`.
        turn: the same.

    Returns:
        Both, in the order of ``rows``.
    """
    asked = {row.question_key() for row in rows if row.same_key() not in learned}
    before = [row for row in rows if row.question_key() not in asked]
    again = sample_rows({"": before}, max(fewest - (len(rows) - len(before)), 0), seed=seed, turn=turn)
    left = {row.same_key() for row in before}.difference(row.same_key() for row in again)
    return [row for row in rows if row.same_key() not in left], [row for row in rows if row.same_key() in left]


def sample_rows(older: Mapping[str, Sequence[Row]], num: int, *, seed: int = 0, turn: int = 0) -> list[Row]:
    """Sample ``num`` rows, or all if there are fewer.

    Each kind, answer and round is a stratum, and contributes in proportion to its size. Answers that only one row of a
    round has share a stratum. Where strata are smaller than what is drawn of them, each turn draws from others.

    Args and Returns: as for `sample_replay`.
    """
    strata: defaultdict[Stratum, list[Row]] = defaultdict(list)
    for name, rows in older.items():
        answers = Counter(row.answer for row in rows)
        for row in rows:
            strata[row.kind, row.answer if answers[row.answer] > 1 else "", name].append(row)
    chosen: list[Row] = []
    for stratum, quota in _quotas({key: len(rows) for key, rows in sorted(strata.items())}, num, turn).items():
        ranked = sorted(strata[stratum], key=lambda row: _rank(seed, turn, row))
        chosen += ranked[:quota]
    return sorted(chosen, key=lambda row: _rank(seed, turn, row))


def _quotas(sizes: Mapping[Stratum, int], num: int, turn: int) -> dict[Stratum, int]:
    """Apportion ``num`` in proportion to ``sizes``, each share rounded up or down, by systematic sampling: the sizes
    lie one after another on a line, and every point ``start + k`` of it counts for the size that it falls into.

    The start moves by the golden ratio with each turn, so that a size with a share below 1 is met as evenly as can be:
    largest remainders would give to the same sizes in every turn. Neighbours together have their share, too.
    """
    total = sum(sizes.values())
    num = min(num, total)
    start = math.modf(0.5 + turn * _GOLDEN)[0]
    quotas: dict[Stratum, int] = {}
    before = taken = 0
    for key, size in sizes.items():
        before += size
        upto = math.floor(num * before / total + start)
        quotas[key] = upto - taken
        taken = upto
    return quotas


def _rank(seed: int, turn: int, row: Row) -> bytes:
    place = seed.to_bytes(8, "big", signed=True) + (turn.to_bytes(4, "big") if turn else b"")
    return hashlib.blake2b(place + row.digest(), digest_size=16).digest()
