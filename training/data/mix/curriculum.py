"""In which order rows are learned from: easy ones first, but never sorted so finely that a batch is all of one kind.

Pure functions of numbers: what is difficult about a row (its length, the base's loss on it) is the caller's to say.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Literal

from graftwork.adapters.errors import ConfigurationError

Curriculum = Literal["none", "short_first", "easy_first"]
"""Every epoch goes, in stages: with ``short_first`` from the shortest rows to the longest, with ``easy_first`` from
those that the model finds likeliest as the run begins to those it finds least likely. ``none``: in any order."""

STAGES = 4


def easy_to_hard(difficulties: Sequence[float], *, seed: int, stages: int = STAGES) -> list[int]:
    """Indices of the rows in the order to learn them: ``stages`` equal parts from the easiest to the hardest, each
    shuffled by ``seed``. Of one part it is a plain shuffle; of as many as rows, a plain sort.

    Raises ConfigurationError for a difficulty that is no number, and for fewer than one stage.
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
    """A row's place in the shuffle: the same in every process and release of Python."""
    return hashlib.blake2b(f"{seed} {index}".encode(), digest_size=8).digest()
