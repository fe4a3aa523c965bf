"""Reward functions: entry points of installed packages, chosen by name.

Nothing is loaded here. A package offers one in its ``pyproject.toml``::

    [project.entry-points."graftwork.rewards"]
    polite = "our_rewards:polite"

So no request can name code that is not installed.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.names import quoted

GROUP: Final = "graftwork.rewards"


def find(name: str, *, param: str = "rewards") -> EntryPoint:
    """The entry point of that name.

    Raises:
        InvalidRequest: There is none, or more than one package has it.
    """
    found = {point.value: point for point in entry_points(group=GROUP) if point.name == name}
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise InvalidRequest(
            f"{quoted(name)} is offered by more than one installed package: {', '.join(sorted(found))}", param=param
        )
    there = sorted({point.name for point in entry_points(group=GROUP)})
    raise InvalidRequest(
        f"{quoted(name)} is no reward function that is installed where runs are carried out: choose among "
        f"{', '.join(there)}, or install a package with an entry point of the group {GROUP}",
        param=param,
        code="reward_not_installed",
    )


def check(names: Iterable[str], *, param: str = "rewards") -> None:
    """Check that reward functions are installed.

    Raises:
        InvalidRequest: One is not.
    """
    for name in names:
        find(name, param=param)
