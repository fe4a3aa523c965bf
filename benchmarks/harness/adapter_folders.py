"""The adapters of benchmarks, by name. Each is generated when it is first used, and kept in the cache.

====== ============================================================
``a7`` rank 16 on all seven projections, 10 MB on a base of 135M
``c7`` the same, for loads that need adapters without earlier requests
``z7`` rank 4 on q and v, for loads with many adapters
====== ============================================================
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from benchmarks.harness.make_adapters import PROJECTIONS, write

_KINDS = {"a": (16, PROJECTIONS), "c": (16, PROJECTIONS), "z": (4, ("q_proj", "v_proj"))}


class AdapterFolders:
    """The adapters for one base.

    Args:
        base: folder of the base.
        folder: folder to keep the adapters in.
    """

    def __init__(self, base: Path, folder: Path) -> None:
        self._base = base
        self.folder = folder

    def missing(self, names: Iterable[str]) -> list[str]:
        """Return the names of adapters that are not generated yet."""
        return [name for name in names if not (self.folder / name).is_dir()]

    def folders(self, names: Iterable[str]) -> dict[str, Path]:
        """Return the PEFT folders of adapters by name, and generate those that are missing."""
        return {name: self._made(name) for name in names}

    def _made(self, name: str) -> Path:
        folder = self.folder / name
        if not folder.is_dir():
            kind, number = name[0], int(name[1:])
            rank, projections = _KINDS[kind]
            partial = self.folder / f".{name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            write(self._base, partial, rank=rank, seed=number + 10_000 * "acz".index(kind), projections=projections)
            partial.rename(folder)
        return folder


def named(kind: str, count: int) -> tuple[str, ...]:
    """Return the first ``count`` names of a kind: ``a0``, ``a1``, …"""
    return tuple(f"{kind}{number}" for number in range(count))
