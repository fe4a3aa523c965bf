"""Deterministic train, validation and test splits: **a question that was once on a side stays there for good.**

The split of a new question depends on a hash of its user, or of the question where it has no user, compared with the
shares. Then leakage is removed: no question may be on two sides of the split. Where new questions are (nearly) the
same, all their rows are on the most trained-on side (test → validation → train). A row with a user does not move
without the user's other rows; where it would have to, it is left out.

A question that earlier data had on a side is there again, whatever the shares are now, and so are rows whose split is
assigned by the source. Where these two differ, the row is left out. Held-out rows have priority: rows near them on
other sides are left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from graftwork.adapters.errors import ConfigurationError
from graftwork.training.data.row import SplitName

EXPOSURE: Final[Mapping[SplitName, int]] = {"test": 0, "validation": 1, "train": 2}
"""How much a split is exposed to training; rows only move to splits of higher exposure."""


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Shares of the rows that are held out, each at least 0 and below 1.

    Raises:
        ConfigurationError: if a share is out of bounds, or nothing is left to train on.
    """

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
        """Parse train, validation and test parts such as ``80/10/10``; they are scaled to a sum of 1.

        Raises:
            ConfigurationError: if the text is not of this form.
        """
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
        """Return the split that the hash of a key falls into."""
        place = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) / 2**64
        if place < self.test:
            return "test"
        return "validation" if place < self.test + self.validation else "train"


WATCHED: Final = 4
"""One of so many validation rows is watched while a run learns; see `is_watched`."""


def is_watched(question: int) -> bool:
    """Whether a question of the validation side is for choices within a run, such as an early end or a search.

    The gates judge by the others, so that no run is chosen by what it is judged by.

    Args:
        question: `Row.question_key`.
    """
    return question % WATCHED == 0


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitKey:
    """What the split of a row depends on.

    Attributes:
        question: `Row.question_key`.
        group: `Row.group`.
        given: the split that the source assigns.
        earlier: the split that earlier data had the question in.
    """

    question: int
    group: str | None = None
    given: SplitName | None = None
    earlier: SplitName | None = None

    @property
    def fixed(self) -> SplitName | None:
        """The split that is not to be chosen any more."""
        return self.earlier or self.given


def assign(places: Sequence[SplitKey], near: Iterable[tuple[int, int]], shares: Shares) -> list[SplitName | None]:
    """Assign a split to each row.

    Args:
        places: one key for each row.
        near: pairs of indices of rows with nearly the same question. Rows with equal question keys need not be listed.
        shares: shares of the held-out splits.

    Returns:
        The split of each row; None for a row that is left out because its question is on another side.
    """
    near = list(near)
    barriers = _barriers(places, near)
    out = {
        number
        for number, place in enumerate(places)
        if place.given not in (None, place.fixed) or barriers.get(place.question, place.fixed) != place.fixed
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
        may_move = place.group is None and place.fixed is None
        sides.append(side if may_move or side == own[number] else None)
    return sides


def _own_side(place: SplitKey, shares: Shares) -> SplitName:
    if place.fixed is not None:
        return place.fixed
    return shares.side(f"{place.question}" if place.group is None else f"user {place.group}")


def _same_question(places: Sequence[SplitKey]) -> Iterable[tuple[int, int]]:
    first: dict[int, int] = {}
    for number, place in enumerate(places):
        if first.setdefault(place.question, number) != number:
            yield first[place.question], number


def _barriers(places: Sequence[SplitKey], near: Iterable[tuple[int, int]]) -> dict[int, SplitName]:
    """The only split that a question may be in, by question key, where it or a near one is held out for good."""
    held: dict[int, SplitName] = {}
    for place in places:
        if place.fixed is not None and place.fixed != "train":
            held[place.question] = _less_exposed(held.get(place.question, place.fixed), place.fixed)
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
    """Disjoint sets of row indices (union-find)."""

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
