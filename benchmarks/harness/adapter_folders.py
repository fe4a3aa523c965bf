"""The adapters to measure with, by name, each written when it is first wanted and kept in the cache.

====== ============================================================
``a7`` rank 16 on all seven projections, 10 MB on a base of 135M
``c7`` the same, for loads in which nobody may have asked for it yet
``z7`` rank 4 on q and v: many of them fit anywhere
====== ============================================================

Knows no system.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from benchmarks.harness.make_adapters import PROJECTIONS, write

_KINDS = {"a": (16, PROJECTIONS), "c": (16, PROJECTIONS), "z": (4, ("q_proj", "v_proj"))}


class AdapterFolders:
    def __init__(self, base: Path, folder: Path) -> None:
        """Those of one base, kept below ``folder``."""
        self._base = base
        self.folder = folder

    def missing(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if not (self.folder / name).is_dir()]

    def folders(self, names: Iterable[str]) -> dict[str, Path]:
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
    """``a0``, ``a1``, …"""
    return tuple(f"{kind}{number}" for number in range(count))
