"""Which row is learned from when: functions of seed and epoch alone, so that a run that was ended goes on as it would
have, whatever its micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, cycle, islice
from typing import Final

import torch

from graftwork.training.data.mix.curriculum import easy_to_hard

BATCHES_SORTED: Final = 50
"""So many batches are sorted by length together: little padding, and still a new mixture every epoch."""


class LengthGroupedSampler(torch.utils.data.Sampler[int]):
    """Every row once an epoch.

    ``lengths`` in tokens. ``shuffled`` False leaves the rows as they are; with ``difficulties`` an epoch goes from the
    easiest to the hardest, in stages.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int,
        *,
        shuffled: bool = True,
        difficulties: Sequence[float] | None = None,
    ) -> None:
        self._lengths, self._batch_size, self._seed, self._shuffled = lengths, batch_size, seed, shuffled
        self._difficulties = difficulties
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        if not self._shuffled:
            yield from range(len(self))
            return
        mixture = self._seed * 1_000_003 + self._epoch
        if self._difficulties is not None:
            yield from easy_to_hard(self._difficulties, seed=mixture)
            return
        random = torch.Generator().manual_seed(mixture)
        order = torch.randperm(len(self), generator=random).tolist()
        batches: list[list[int]] = []
        for start in range(0, len(order), self._batch_size * BATCHES_SORTED):
            near = sorted(order[start : start + self._batch_size * BATCHES_SORTED], key=lambda row: -self._lengths[row])
            batches += [near[first : first + self._batch_size] for first in range(0, len(near), self._batch_size)]
        # The one that is not full stays last: in the middle it would shift the rows of all others.
        last = [batches.pop()] if len(batches[-1]) < self._batch_size else []
        for index in torch.randperm(len(batches), generator=random).tolist():
            yield from batches[index]
        yield from (row for batch in last for row in batch)


class RepeatSampler(torch.utils.data.Sampler[int]):
    """The same for trainers that have the model answer: a batch has ``questions``, each asked ``times`` times, and is
    handed out again for each of the ``parts`` that its answers are learned in, as TRL's samplers do. A last batch that
    is not full is filled with the epoch's first questions, so that none is left out."""

    def __init__(self, order: LengthGroupedSampler, *, questions: int, times: int, parts: int) -> None:
        self._order, self._questions, self._times, self._parts = order, questions, times, parts

    def set_epoch(self, epoch: int) -> None:
        self._order.set_epoch(epoch)

    @property
    def _num_batches(self) -> int:
        return -(-len(self._order) // self._questions)

    def __len__(self) -> int:
        return self._num_batches * self._questions * self._times * self._parts

    def __iter__(self) -> Iterator[int]:
        epoch = list(self._order)
        rows = chain(epoch, cycle(epoch))
        for _ in range(self._num_batches):
            batch = [row for row in islice(rows, self._questions) for _ in range(self._times)]
            yield from batch * self._parts
