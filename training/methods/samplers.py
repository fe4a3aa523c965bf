"""Samplers: the order of rows. It depends on seed and epoch only, so that a resumed run continues with the same rows,
whatever its micro-batch size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, cycle, islice
from typing import Final

import torch

from graftwork.training.data.mix.curriculum import easy_to_hard

BATCHES_SORTED: Final = 50
"""Number of batches whose rows are sorted by length together: little padding, and still different batches each epoch.
"""


class LengthGroupedSampler(torch.utils.data.Sampler[int]):
    """Yields the index of each row once per epoch, such that the rows of a batch have similar lengths.

    Args:
        lengths: length of each row, in tokens.
        batch_size: number of rows in an optimizer step.
        seed: of the order, together with the epoch.
        shuffled: if False, the rows keep their order.
        difficulties: if given, each epoch goes from easy to hard in stages instead; see `easy_to_hard`.
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
        """Set the epoch of the next iteration, from 0; the trainer calls it."""
        self._epoch = epoch

    def typical_batch(self) -> list[int]:
        """Return the rows of a batch as long as the mean."""
        size = min(self._batch_size, len(self))
        if not self._shuffled or self._difficulties is not None:  # rows of all lengths, mixed
            return list(islice(self, size))
        mean = sum(self._lengths) / len(self)
        by_length = sorted(range(len(self)), key=self._lengths.__getitem__)
        num_shorter = sum(length < mean for length in self._lengths)
        start = min(max(num_shorter - size // 2, 0), len(self) - size)
        return by_length[start : start + size]

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
        # An incomplete batch stays last: in the middle it would shift the rows of all later batches.
        last = [batches.pop()] if len(batches[-1]) < self._batch_size else []
        for index in torch.randperm(len(batches), generator=random).tolist():
            yield from batches[index]
        yield from (row for batch in last for row in batch)


class RepeatSampler(torch.utils.data.Sampler[int]):
    """Repeats the rows of another sampler for online methods, as TRL's samplers do.

    A last batch that is incomplete is filled with the first questions of the epoch.

    Args:
        order: the order of the questions.
        questions: number of questions in a batch.
        times: number of completions per question; its index is repeated as often.
        parts: number of micro-batches; each batch is repeated as often.
    """

    def __init__(self, order: LengthGroupedSampler, *, questions: int, times: int, parts: int) -> None:
        self._order, self._questions, self._times, self._parts = order, questions, times, parts

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration, from 0; the trainer calls it."""
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
