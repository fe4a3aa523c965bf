"""Which engine answers a request: rendezvous hashing by adapter, with bounded load.

Every adapter has an order of all engines, which follows from their names alone: each gateway computes the same one, and
an engine that comes or goes moves only the adapters that are on it. A request goes to the first engine of the order;
to the first few where the adapter has more traffic than one engine's share; and to the next that is not too busy where
those are. Of several engines one of the least busy is taken: for the same first tokens the same, whose prefix cache has
them. So are requests without an adapter, which any engine can answer.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

import numpy as np
from numpy.typing import NDArray

#: An engine takes up to so many times the mean load.
BOUND: Final = 2.0

#: Of what an engine has to do, one adapter with much traffic is meant to be this part. With such adapters the load is
#: made even: each can go to several engines, so that the many with little traffic can stay on one.
SHARE: Final = 1 / 4

#: Engines count as equally busy up to so many times the load of the least busy.
EVEN: Final = 1.125

#: So many first tokens of a prompt choose among engines that are equally good.
PREFIX_TOKENS: Final = 32


class RendezvousRouter:
    """Chooses engines. Decisions follow from the arguments alone, in every process alike.

    The arrays of loads and of which engines are usable are in the order of ``members``.

    Args:
        members: The names of all engines.
        bound: An engine takes up to so many times the mean load.

    Attributes:
        members: Those names.

    Raises:
        ValueError: A name is given twice, or the bound is not above 1.
    """

    def __init__(self, members: Sequence[str], *, bound: float = BOUND) -> None:
        if len(set(members)) != len(members):
            raise ValueError(f"engines with one name: {sorted(members)}")
        if bound <= 1:
            raise ValueError(f"a bound of {bound} times the mean cannot be kept")
        self.members = tuple(members)
        self._bound = bound
        self._hashes = np.array([_hash(member.encode()) for member in members], dtype=np.uint64)

    def choose(
        self,
        adapter: str | None,
        prompt: Sequence[int],
        loads: NDArray[np.int64],
        usable: NDArray[np.bool_],
        *,
        num_open: int = 0,
    ) -> int | None:
        """The engine for one request.

        Args:
            adapter: A digest; ``None``: the bare base, which every engine has.
            prompt: Token ids.
            loads: Answers under way on each engine.
            usable: Which engines take requests.
            num_open: Answers under way with this adapter.

        Returns:
            The engine's place among ``members``; ``None`` if none is usable.
        """
        indices = np.flatnonzero(usable)
        if not len(indices):
            return None
        mean = float(loads[indices].mean())
        # With the request itself, the mean is a little higher: there is always an engine below the limit.
        limit = math.ceil(self._bound * (mean + 1 / len(indices)))
        below = loads[indices] < limit
        if adapter is None:
            return self._nearest(indices[below], loads, prompt)
        scores = self._scores(indices, _hash(adapter.encode()))
        home = _largest(scores, math.ceil(num_open / max(1.0, SHARE * mean)))
        home = home[below[home]]
        if not len(home):
            return int(indices[np.argmax(np.where(below, scores, 0))])
        return self._nearest(indices[home], loads, prompt)

    def home(self, adapter: str, usable: NDArray[np.bool_]) -> int | None:
        """The engine where an adapter is first, whatever its load; ``None`` if none is usable."""
        indices = np.flatnonzero(usable)
        if not len(indices):
            return None
        return int(indices[np.argmax(self._scores(indices, _hash(adapter.encode())))])

    def _nearest(self, indices: NDArray[np.intp], loads: NDArray[np.int64], prompt: Sequence[int]) -> int:
        """Of these engines one of the least busy: the one that the prompt's first tokens choose."""
        if len(indices) > 1:
            indices = indices[loads[indices] <= EVEN * loads[indices].min()]
        if len(indices) == 1:
            return int(indices[0])
        first = np.asarray(prompt[:PREFIX_TOKENS], dtype="<i8")
        return int(indices[np.argmax(self._scores(indices, _hash(first.tobytes())))])

    def _scores(self, indices: NDArray[np.intp], key: int) -> NDArray[np.uint64]:
        """A random number for each of these engines and a key; the greater, the earlier in the key's order."""
        mixed = self._hashes[indices] ^ np.uint64(key)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)  # SplitMix64's finalizer
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
        return np.asarray(mixed | np.uint64(1))  # 0 stands for "not this one"


def _largest(scores: NDArray[np.uint64], count: int) -> NDArray[np.intp]:
    """The places of the ``count`` largest scores, at least one, in no order."""
    if count <= 1:
        return np.array([np.argmax(scores)])
    if count >= len(scores):
        return np.arange(len(scores))
    return np.argpartition(scores, -count)[-count:]


@functools.lru_cache(maxsize=1 << 16)
def _hash(key: bytes) -> int:
    """64 bits of a key, the same in every process."""
    return int.from_bytes(blake2b(key, digest_size=8).digest())
