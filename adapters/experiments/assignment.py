"""Assigns units to arms: a hash maps a unit to a point in [0, 1), and ranges of points belong to the arms.

A pure function of the experiment's salt, the unit's name and the ranges: the same in every process and after every
restart, without any state. An arm that grows takes points from the control only and keeps its own. So no unit that has
seen a treatment goes back, or over to another, as long as arms only grow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_TINY = 1e-12
"""Ranges shorter than this are rounding errors."""


def bucket(salt: str, unit: str) -> float:
    """The point of ``unit`` in [0, 1): uniform over units, and independent for every salt."""
    digest = hashlib.sha256(f"{salt}:{unit}".encode()).digest()
    # 53 bits: what a float holds exactly.
    return (int.from_bytes(digest[:8]) >> 11) / 2**53


def is_sampled(salt: str, arm: str, key: str, share: float) -> bool:
    """Whether a shadow arm gets a copy of ``key``. It gets a ``share`` of all keys, independent of the assignment."""
    return bucket(f"{salt}:shadow:{arm}", key) < share


@dataclass(frozen=True)
class BucketRange:
    """The points from ``start`` up to, but not including, ``end`` belong to ``arm``."""

    start: float
    end: float
    arm: str

    @property
    def length(self) -> float:
        """The range's share of all units."""
        return self.end - self.start


@dataclass(frozen=True)
class Split:
    """The whole interval [0, 1) in ranges, in order and without gaps. ``control`` has what no treatment got."""

    control: str
    arcs: tuple[BucketRange, ...]

    @classmethod
    def of(cls, control: str, weights: Mapping[str, float]) -> Split:
        """The treatments' ranges with these lengths, and the rest for the control."""
        return cls(control, (BucketRange(0.0, 1.0, control),)).resized(weights)

    @classmethod
    def from_json(cls, control: str, arcs: Sequence[Sequence[object]]) -> Split:
        """The inverse of ``to_json``."""
        return cls(
            control, tuple(BucketRange(float(str(start)), float(str(end)), str(arm)) for start, end, arm in arcs)
        )

    def to_json(self) -> list[list[object]]:
        """One [start, end, arm] per range."""
        return [[arc.start, arc.end, arc.arm] for arc in self.arcs]

    def arm_at(self, at: float) -> str:
        """The arm that the point ``at`` belongs to."""
        return next((arc.arm for arc in self.arcs if at < arc.end), self.control)

    @property
    def weights(self) -> dict[str, float]:
        """Every arm's share, the control's as well."""
        shares = {self.control: 0.0}
        for arc in self.arcs:
            shares[arc.arm] = shares.get(arc.arm, 0.0) + arc.length
        return {arm: round(share, 12) for arm, share in shares.items()}

    def resized(self, weights: Mapping[str, float]) -> Split:
        """A copy with these shares for the treatments that are named.

        What a treatment gives up goes to the control, from its last points on; what one gains is taken from the
        control, from the first points on.
        """
        split = self
        gains = {arm: weight - self.weights.get(arm, 0.0) for arm, weight in weights.items()}
        for arm, gain in sorted(gains.items(), key=lambda item: item[1]):
            if gain < -_TINY:
                split = split._transferred(arm, self.control, -gain, from_the_end=True)
            elif gain > _TINY:
                split = split._transferred(self.control, arm, gain, from_the_end=False)
        return split

    def _transferred(self, giver: str, taker: str, amount: float, *, from_the_end: bool) -> Split:
        """A copy in which ``amount`` of the giver's points belong to the taker."""
        arcs: list[BucketRange] = []
        for arc in reversed(self.arcs) if from_the_end else self.arcs:
            given = min(amount, arc.length) if arc.arm == giver else 0.0
            amount -= given
            if from_the_end:
                arcs += [BucketRange(arc.end - given, arc.end, taker), BucketRange(arc.start, arc.end - given, arc.arm)]
            else:
                arcs += [
                    BucketRange(arc.start, arc.start + given, taker),
                    BucketRange(arc.start + given, arc.end, arc.arm),
                ]
        if amount > 1e-9:
            raise ValueError(f"{giver!r} cannot give {amount} more to {taker!r}")
        return Split(self.control, _joined(arcs[::-1] if from_the_end else arcs))


def _joined(arcs: Sequence[BucketRange]) -> tuple[BucketRange, ...]:
    """Without empty ranges; neighbours of the same arm are merged."""
    joined: list[BucketRange] = []
    for arc in arcs:
        start = joined[-1].end if joined else 0.0
        if arc.end - start <= _TINY:
            continue
        if joined and joined[-1].arm == arc.arm:
            joined[-1] = BucketRange(joined[-1].start, arc.end, arc.arm)
        else:
            joined.append(BucketRange(start, arc.end, arc.arm))
    joined[-1] = BucketRange(joined[-1].start, 1.0, joined[-1].arm)
    return tuple(joined)
