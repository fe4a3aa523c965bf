"""Cuts a step into tiles for the GPU: runs of tokens, and chunks of prompts. Plain Python, no torch.

A tile is what one program of a kernel computes. Decoding rows make short runs, one tile each; prompts make long ones,
of several tiles. The two kinds are launched separately, with tiles of their own size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from graftwork.server.engine.lora.plan import AdapterRun

#: Tokens of a tile: 16 is the fewest that a tensor core takes, and more than most decoding runs have.
SHORT_TILE = 16
LONG_TILE = 64

#: Runs of at least this many tokens are cut into long tiles.
LONG_RUN = 32

#: Tokens of a prompt that one program of attention computes.
ATTENTION_TILE = 64


@dataclass(slots=True)
class RunTiles:
    """Runs cut into tiles of at most ``size`` tokens. A tile has a row of h for each of its tokens and pages.

    Attributes:
        size: The most tokens of a tile.
        tiles: Flat, five numbers a tile: first token, token after the last, where its pages begin in ``pages``, how
            many pages it has, where its rows of h begin.
        pages: Pages of the runs, one run's after another's.
        num_rows: Rows of h in all.
    """

    size: int
    tiles: list[int] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)
    num_rows: int = 0

    @property
    def num_tiles(self) -> int:
        """Number of tiles."""
        return len(self.tiles) // 5

    def add(self, run: AdapterRun) -> None:
        """Cut a run and append its tiles."""
        for start in range(run.start, run.stop, self.size):
            stop = min(start + self.size, run.stop)
            self.tiles += (start, stop, len(self.pages), len(run.pages), self.num_rows)
            self.num_rows += (stop - start) * len(run.pages)
        self.pages += run.pages


def tile_runs(runs: Iterable[AdapterRun]) -> list[RunTiles]:
    """Cut short runs into short tiles, long ones into long tiles; kinds that do not occur are left out."""
    short, long = RunTiles(SHORT_TILE), RunTiles(LONG_TILE)
    for run in runs:
        (long if run.stop - run.start >= LONG_RUN else short).add(run)
    return [tiles for tiles in (short, long) if tiles.tiles]


def tile_short_runs(runs: Iterable[AdapterRun]) -> RunTiles:
    """Cut all runs into short tiles, whatever their length: what a captured graph launches."""
    short = RunTiles(SHORT_TILE)
    for run in runs:
        short.add(run)
    return short


def tile_chunks(chunks: Sequence[tuple[int, int]]) -> list[int]:
    """Cut chunks of prompts (first token, token after the last) into tiles of attention. Flat: two numbers a tile."""
    tiles: list[int] = []
    for start, stop in chunks:
        for first in range(start, stop, ATTENTION_TILE):
            tiles += (first, min(first + ATTENTION_TILE, stop))
    return tiles
