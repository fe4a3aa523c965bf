"""Which replica answers: the router that serves, and what it is compared with."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from graftwork.server.transport.routing import RendezvousRouter

#: How often Ray Serve's replicas tell which models they have.
TELL_SECONDS: Final = 0.1


class Policy(Protocol):
    """Chooses replicas, and may watch which adapters they have."""

    def choose(
        self, adapter: str, loads: NDArray[np.int64], usable: NDArray[np.bool_], num_open: int, now: float
    ) -> int:
        """The place of the replica for a request, of which some are usable."""

    def loaded(self, place: int, adapter: str) -> None:
        """A replica has put an adapter on its device."""

    def evicted(self, place: int, adapter: str) -> None:
        """A replica has taken one off."""

    def lost(self, place: int) -> None:
        """A replica is gone, with all that it had."""


class _Blind:
    """Does not watch."""

    def loaded(self, place: int, adapter: str) -> None:
        """Do nothing."""

    def evicted(self, place: int, adapter: str) -> None:
        """Do nothing."""

    def lost(self, place: int) -> None:
        """Do nothing."""


class Rendezvous(_Blind):
    """Graftwork's router."""

    def __init__(self, num_places: int, bound: float) -> None:
        self._router = RendezvousRouter([f"replica-{place}" for place in range(num_places)], bound=bound)

    def choose(
        self, adapter: str, loads: NDArray[np.int64], usable: NDArray[np.bool_], num_open: int, now: float
    ) -> int:
        """See ``RendezvousRouter.choose``. All prompts begin alike."""
        place = self._router.choose(adapter, (), loads, usable, num_open=num_open)
        assert place is not None
        return place


class Random(_Blind):
    """Any replica."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def choose(
        self, adapter: str, loads: NDArray[np.int64], usable: NDArray[np.bool_], num_open: int, now: float
    ) -> int:
        """Any usable one."""
        return _any(self._random, np.flatnonzero(usable))


class LeastLoaded(_Blind):
    """One of the replicas with the fewest answers under way."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def choose(
        self, adapter: str, loads: NDArray[np.int64], usable: NDArray[np.bool_], num_open: int, now: float
    ) -> int:
        """Any of the least loaded."""
        indices = np.flatnonzero(usable)
        mine = loads[indices]
        return _any(self._random, indices[mine == mine.min()])


class ServeMultiplexing:
    """Ray Serve's multiplexing: the less loaded of two that have the model, as they told it last.

    If none that has it has room, the less loaded of two that have the fewest models.

    Args:
        num_places: Replicas that there may be.
        max_ongoing: Requests that a replica takes at most, Serve's ``max_ongoing_requests``.
        seed: Of random numbers.
    """

    def __init__(self, num_places: int, max_ongoing: int, seed: int) -> None:
        self._random = random.Random(seed)
        self._max_ongoing = max_ongoing
        self._having: defaultdict[str, set[int]] = defaultdict(set)
        self._models: list[set[str]] = [set() for _ in range(num_places)]
        self._counts = np.zeros(num_places, dtype=np.int64)
        self._untold: list[tuple[int, str, bool]] = []
        self._told_at = 0.0

    def choose(
        self, adapter: str, loads: NDArray[np.int64], usable: NDArray[np.bool_], num_open: int, now: float
    ) -> int:
        """Power of two choices among those that have it."""
        if now - self._told_at >= TELL_SECONDS:
            self._hear()
            self._told_at = now
        having = [place for place in self._having[adapter] if usable[place] and loads[place] < self._max_ongoing]
        if not having:
            indices = np.flatnonzero(usable & (loads < self._max_ongoing))
            indices = indices if len(indices) else np.flatnonzero(usable)
            counts = self._counts[indices]
            having = indices[counts == counts.min()].tolist()
        two = having if len(having) <= 2 else self._random.sample(having, 2)
        return min(two, key=lambda place: int(loads[place]))

    def loaded(self, place: int, adapter: str) -> None:
        """It is told later."""
        self._untold.append((place, adapter, True))

    def evicted(self, place: int, adapter: str) -> None:
        """It is told later."""
        self._untold.append((place, adapter, False))

    def lost(self, place: int) -> None:
        """It has nothing."""
        self._untold = [told for told in self._untold if told[0] != place]
        for adapter in self._models[place]:
            self._having[adapter].discard(place)
        self._models[place].clear()
        self._counts[place] = 0

    def _hear(self) -> None:
        for place, adapter, has in self._untold:
            if has:
                self._having[adapter].add(place)
                self._models[place].add(adapter)
            else:
                self._having[adapter].discard(place)
                self._models[place].discard(adapter)
            self._counts[place] = len(self._models[place])
        self._untold.clear()


def _any(random_: random.Random, places: NDArray[np.intp]) -> int:
    return int(places[random_.randrange(len(places))])


def make_policy(name: str, num_places: int, in_flight: int, seed: int) -> Policy:
    """A policy by its name, for so many requests under way on each replica.

    Raises:
        KeyError: There is none of that name.
    """
    makers: dict[str, Callable[[], Policy]] = {
        "rendezvous 1.25": lambda: Rendezvous(num_places, 1.25),
        "rendezvous 1.5": lambda: Rendezvous(num_places, 1.5),
        "rendezvous 2": lambda: Rendezvous(num_places, 2.0),
        "random": lambda: Random(seed),
        "least loaded": lambda: LeastLoaded(seed),
        "Ray Serve": lambda: ServeMultiplexing(num_places, 2 * in_flight, seed),
    }
    return makers[name]()


POLICIES: Final = ("rendezvous 2", "rendezvous 1.25", "random", "least loaded", "Ray Serve")
