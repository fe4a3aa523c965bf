"""The key-value cache: memory of slots, its release, and that no slot shows data of an earlier sequence."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch

from graftwork.server.engine.kv.cache import KEEP_TOKENS, CacheShape, KVCache
from graftwork.server.engine.kv.prefix_cache import SlotMove

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
    cache.reset(slot)
    cache.extend(slot, length)
    for tensor in (*cache.keys, *cache.values):
        tensor[slot, :length] = float("nan")


def held() -> int:
    """Bytes of this process's memory that come from no file: the kernel takes those of libraries away as it likes."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) * 1024


def test_short_rows_cost_little_and_long_ones_give_back() -> None:
    cache = make(num_slots=32)
    sizes = [held()]
    for slot in range(32):
        fill(cache, slot, 16)
    sizes.append(held())
    fill(cache, 0, 4096)
    sizes.append(held())
    cache.reset(0)
    sizes.append(held())
    short, long, back = [after - before for before, after in pairwise(sizes)]
    assert short < 32 * MIB  # two megabytes a row and layer would be 1,024
    assert long > 10 * MIB
    assert back < -10 * MIB


def test_a_claimed_slot_shows_nothing_of_the_last_one() -> None:
    cache = make(slot_length=1500, width=24, layers=3)  # no tensor row is a whole page
    for length in (7, KEEP_TOKENS, KEEP_TOKENS + 1, 1500):
        fill(cache, 2, length)
        neighbours = [tensor[slot, :40].fill_(3.0) for tensor in cache.keys for slot in (1, 3)]
        cache.reset(2)
        assert all(not tensor[2].any() for tensor in (*cache.keys, *cache.values))
        assert all((rows == 3.0).all() for rows in neighbours)


def test_a_slot_holds_what_is_arranged_and_nothing_else() -> None:
    """Copied from another slot or left of its own; what was behind it, NaN or not, is gone, its neighbours are not."""
    cache = make(slot_length=1500, width=24, layers=3)  # no tensor row is a whole page
    places = torch.arange(1500.0)[:, None]
    for in_use in (True, False):
        for count in (0, 1, 100, KEEP_TOKENS + 100, 1300):
            for source in (2, 5):
                for slot in (1, 3):
                    fill(cache, slot, 40)
                fill(cache, 2, 1400)
                cache.reset(5)
                cache.extend(5, 1350)
                for tensor in (*cache.keys, *cache.values):
                    tensor[2, :count] = 2 * places[:count]
                    tensor[5, :1350] = 5 * places[:1350]
                cache.apply_move(SlotMove(2, source, count, in_use))
                for tensor in (*cache.keys, *cache.values):
                    assert (tensor[2, :count] == source * places[:count]).all()
                    assert not tensor[2, count:].any()
                    assert (tensor[5, :1350] == 5 * places[:1350]).all()
                    assert all(tensor[slot, :40].isnan().all() for slot in (1, 3))


def test_an_evicted_slot_gives_its_memory_back() -> None:
    cache = make(num_slots=32)
    for slot in range(32):
        fill(cache, slot, 400)
    before = held()
    for slot in range(32):
        cache.apply_move(SlotMove(slot, slot, 100, in_use=False))
    kept = held()
    for slot in range(32):
        cache.apply_move(SlotMove(slot, slot, 0, in_use=False))
    after = held()
    assert before - kept > 25 * MIB  # of 37 in 300 tokens
    assert kept - after > 5 * MIB  # of 12 in 100
