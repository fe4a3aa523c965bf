"""The cache's memory: slots cost what they hold, give it back, and never show what the last one left."""

from __future__ import annotations

from itertools import pairwise

import psutil
import torch

from graftwork.server.engine.kv_cache import KEEP_TOKENS, CacheShape, KVCache

MIB = 1 << 20


def make(num_slots: int = 8, slot_length: int = 4096, width: int = 64, layers: int = 8) -> KVCache:
    return KVCache(
        CacheShape(
            num_slots=num_slots,
            slot_length=slot_length,
            kv_sizes=((1, width),) * layers,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
    )


def fill(cache: KVCache, slot: int, length: int) -> None:
    cache.claim(slot)
    cache.extend(slot, length)
    for tensor in (*cache.keys, *cache.values):
        tensor[slot, :length] = float("nan")


def test_short_rows_cost_little_and_long_ones_give_back() -> None:
    cache = make(num_slots=32)
    process = psutil.Process()
    sizes = [process.memory_info().rss]
    for slot in range(32):
        fill(cache, slot, 16)
    sizes.append(process.memory_info().rss)
    fill(cache, 0, 4096)
    sizes.append(process.memory_info().rss)
    cache.claim(0)
    sizes.append(process.memory_info().rss)
    short, long, back = [after - before for before, after in pairwise(sizes)]
    assert short < 32 * MIB  # two megabytes a row and layer would be 1,024
    assert long > 10 * MIB
    assert back < -10 * MIB


def test_a_claimed_slot_shows_nothing_of_the_last_one() -> None:
    cache = make(slot_length=1500, width=24, layers=3)  # no tensor row is a whole page
    for length in (7, KEEP_TOKENS, KEEP_TOKENS + 1, 1500):
        fill(cache, 2, length)
        neighbours = [tensor[slot, :40].fill_(3.0) for tensor in cache.keys for slot in (1, 3)]
        cache.claim(2)
        assert all(not tensor[2].any() for tensor in (*cache.keys, *cache.values))
        assert all((rows == 3.0).all() for rows in neighbours)
