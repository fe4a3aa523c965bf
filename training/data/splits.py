"""On which side of a split rows fall: by what they ask and who asked, so that it stays so when rows are added.

A row's first side follows from its question alone, or from its user where it has one: a hash, compared with the shares.
Then nothing may be asked on both sides. Where questions are (nearly) the same, the row that is trained on wins, since a
row that was once trained on must never be measured on later: **a row can only move towards training** (test →
validation → train) as others come. Rows of one user move together or not at all: one that may not move is left out.

Rows whose side the source has given stay; there the held-out row wins and what is near it is left out.

Knows rows by their numbers and nothing of texts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from graftwork.adapters.errors import ConfigurationError
from graftwork.training.data.row import SplitName

EXPOSURE: Final[Mapping[SplitName, int]] = {"test": 0, "validation": 1, "train": 2}
"""How much of a row a model has seen: sides only ever rise in it."""


@dataclass(frozen=True, kw_only=True)
class Shares:
    """How much is held out. ConfigurationError unless something is left to train on."""

    validation: float = 0.1
    test: float = 0.1

    def __post_init__(self) -> None:
        for name in ("validation", "test"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigurationError(
                    f"The share of {name} rows is {getattr(self, name):g}: it must be at least 0 and below 1.",
                    param=name,
                )
        if self.validation + self.test >= 1:
            raise ConfigurationError("Nothing is left to train on: hold out less.", param="split")

    @classmethod
    def parse(cls, text: str) -> Shares:
        """``80/10/10``: train, validation, test. ConfigurationError for anything else."""
        try:
            train, validation, test = (float(part) for part in text.split("/"))
        except ValueError:
            raise ConfigurationError(
                f"{text!r} is no split: write train, validation and test, as in 80/10/10.", param="split"
            ) from None
        total = train + validation + test
        if not (total > 0 and min(train, validation, test) >= 0 and total < float("inf")):
            raise ConfigurationError(f"{text!r} is no split: the parts must be at least 0.", param="split")
        return cls(validation=validation / total, test=test / total)

    def side(self, key: str) -> SplitName:
        """The side that a key falls on by itself."""
        place = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) / 2**64
        if place < self.test:
            return "test"
        return "validation" if place < self.test + self.validation else "train"


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitKey:
    """What the side of one row depends on: its question's key, its user's group, the side given by its source, and the
    side on which an earlier version of the data set had the question."""

    question: int
    group: str | None = None
    given: SplitName | None = None
    earlier: SplitName | None = None


def assign(places: Sequence[SplitKey], near: Iterable[tuple[int, int]], shares: Shares) -> list[SplitName | None]:
    """The side of each row; None is left out, since something (nearly) the same is asked on another side.

    ``near`` are pairs of rows that ask nearly the same; the same question key counts as well.
    """
    near = list(near)
    barriers = _barriers(places, near)
    out = {
        number
        for number, place in enumerate(places)
        if place.question in barriers and place.given != barriers[place.question]
    }
    clusters = _Clusters(len(places))
    for one, other in (*near, *_same_question(places)):
        if one not in out and other not in out:
            clusters.join(one, other)

    own = [_own_side(place, shares) for place in places]
    seen: dict[int, SplitName] = {}
    for number, place_alone in enumerate(own):
        if number not in out:
            root = clusters.root(number)
            seen[root] = _more_exposed(seen.get(root, place_alone), place_alone)
    sides: list[SplitName | None] = []
    for number, place in enumerate(places):
        side = None if number in out else seen[clusters.root(number)]
        may_move = place.group is None and place.given is None
        sides.append(side if may_move or side == own[number] else None)
    return sides


def _own_side(place: SplitKey, shares: Shares) -> SplitName:
    if place.given is not None:
        return place.given
    own = shares.side(f"{place.question}" if place.group is None else f"user {place.group}")
    return own if place.earlier is None else _more_exposed(own, place.earlier)


def _same_question(places: Sequence[SplitKey]) -> Iterable[tuple[int, int]]:
    first: dict[int, int] = {}
    for number, place in enumerate(places):
        if first.setdefault(place.question, number) != number:
            yield first[place.question], number


def _barriers(places: Sequence[SplitKey], near: Iterable[tuple[int, int]]) -> dict[int, SplitName]:
    """The only side on which these questions may stand, since a source holds them or something near them out."""
    held: dict[int, SplitName] = {}
    for place in places:
        if place.given is not None and place.given != "train":
            held[place.question] = _less_exposed(held.get(place.question, place.given), place.given)
    barriers = dict(held)
    for pair in near:
        for one, other in (pair, pair[::-1]):
            if (side := held.get(places[one].question)) is not None:
                question = places[other].question
                barriers[question] = _less_exposed(barriers.get(question, side), side)
    return barriers


def _more_exposed(one: SplitName, other: SplitName) -> SplitName:
    return one if EXPOSURE[one] >= EXPOSURE[other] else other


def _less_exposed(one: SplitName, other: SplitName) -> SplitName:
    return one if EXPOSURE[one] <= EXPOSURE[other] else other


class _Clusters:
    """Sets of numbers that belong together (union-find)."""

    def __init__(self, size: int) -> None:
        self._parents = list(range(size))

    def root(self, number: int) -> int:
        parents = self._parents
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number

    def join(self, one: int, other: int) -> None:
        one, other = self.root(one), self.root(other)
        self._parents[max(one, other)] = min(one, other)
