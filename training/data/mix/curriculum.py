"""Curriculum learning: rows are learned from in stages from easy to hard, shuffled within a stage.

The caller defines the difficulty of a row: its length, or the base's loss on it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Literal

from graftwork.adapters.errors import ConfigurationError

Curriculum = Literal["none", "short_first", "easy_first"]
"""The order of rows in each epoch. ``short_first``: from short to long rows. ``easy_first``: from rows with a low loss
before the run to rows with a high one. ``none``: shuffled."""

STAGES = 4


def easy_to_hard(difficulties: Sequence[float], *, seed: int, stages: int = STAGES) -> list[int]:
    """Order rows in stages of equal size from the easiest to the hardest, shuffled within each stage.

    Args:
        difficulties: one number for each row; higher is harder.
        seed: of the shuffles.
        stages: number of stages. 1 is a plain shuffle; as many as there are rows is a plain sort.

    Returns:
        The indices of the rows, in order.

    Raises:
        ConfigurationError: if a difficulty is NaN, or ``stages`` is below 1.
    """
    if stages < 1:
        raise ConfigurationError(f"A curriculum has at least one stage, not {stages}.", param="stages")
    for index, difficulty in enumerate(difficulties):
        if math.isnan(difficulty):
            raise ConfigurationError(f"The difficulty of row {index} is no number.", param="difficulties")
    ranked = sorted(range(len(difficulties)), key=lambda index: (difficulties[index], index))
    stage = {index: rank * stages // len(ranked) for rank, index in enumerate(ranked)}
    return sorted(ranked, key=lambda index: (stage[index], _shuffled(seed, index)))


def _shuffled(seed: int, index: int) -> bytes:
    """Return the sort key of a row in the shuffle; the same in every process and Python release."""
    return hashlib.blake2b(f"{seed} {index}".encode(), digest_size=8).digest()
