"""The time of each of this project's GPU kernels on this GPU, beside its roofline (`benchmarks.engine.gpu_roofline`).

The GPU's memory and tensor cores are measured first, by a copy and a matrix product of torch, so that the shares hold
for any GPU. Tables and caches are larger than the second-level cache, as they are in a step.

    python -m benchmarks.engine.gpu_kernels --base llama-3-8b --rows 32 --adapters 32
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate

import torch

from benchmarks.engine.gpu_roofline import BASES, GPU, Base, Cost, Family, StepShape, attend, expand, nf4_linear, shrink

#: Copies of a table that take turns: together they do not fit in a second-level cache.
COPIES = 4

REPEATS = 50


@dataclass(frozen=True, slots=True)
class Case:
    """``run`` launches ``kernels`` (all of them where none is named), whose work in sum is ``cost``."""

    name: str
    kernels: tuple[str, ...]
    cost: Cost
    run: Callable[[], object]


def build_cases(base: Base, load: StepShape, prompt: int, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """``prompt`` tokens in the steps that are not decoding; one adapter has them all."""
    decoding = [load.rows * index // load.adapters for index in range(load.adapters + 1)]
    for family in base.grafted:
        yield from _adapters(f"{family.name}, decode", family, load, decoding, device, dtype)
        long = replace(load, rows=prompt, adapters=1)
        yield from _adapters(f"{family.name}, prompt", family, long, [0, prompt], device, dtype)
    yield _attention_of_rows(base, load, device, dtype)
    yield _attention_of_a_prompt(base, prompt, device, dtype)
    if device.type == "cuda":
        for family in base.linears:
            yield _nf4(family, load, device, dtype)


def _adapters(
    name: str, family: Family, load: StepShape, bounds: list[int], device: torch.device, dtype: torch.dtype
) -> Iterator[Case]:
    from graftwork.server.engine.backends.cuda.lora import SegmentedTable, plan_for
    from graftwork.server.engine.lora.host_adapter import RANK_PAGE, LinearGraft
    from graftwork.server.engine.lora.plan import AdapterRun

    ends = list(accumulate(family.widths))
    slices = [slice(end - width, end) for end, width in zip(ends, family.widths, strict=True)]
    tables = [
        SegmentedTable(
            num_pages=load.adapters * load.pages,
            num_inputs=family.num_inputs,
            slices=slices,
            dtype=dtype,
            device=device,
        )
        for _ in range(COPIES)
    ]
    grafts = {
        member: LinearGraft(
            a=torch.randn(load.pages, RANK_PAGE, family.num_inputs),
            b=torch.randn(load.pages, RANK_PAGE, width),
            magnitude=None,
            bias=None,
        )
        for member, width in enumerate(family.widths)
    }
    packed = tables[0].pack(grafts)
    pages = [tuple(range(i * load.pages, (i + 1) * load.pages)) for i in range(load.adapters)]
    for table in tables:
        for owned in pages:
            table.write(owned, packed)
    runs = [AdapterRun(bounds[i], bounds[i + 1], str(i), pages[i]) for i in range(load.adapters)]
    plan = plan_for(runs, device)
    x = torch.randn(load.rows, family.num_inputs, device=device, dtype=dtype)
    y = torch.zeros(load.rows, family.num_outputs, device=device, dtype=dtype)

    def run() -> None:
        for table in tables:
            table.add(plan, x, y)

    yield Case(f"shrink {name}", ("shrink",), shrink(family, load) * COPIES, run)
    yield Case(f"expand {name}", ("expand",), expand(family, load) * COPIES, run)


def _attention_of_rows(base: Base, load: StepShape, device: torch.device, dtype: torch.dtype) -> Case:
    run = _attention(base, [(load.context - 1, 1)] * load.rows, device, dtype)
    return Case("attention, decode", ("attend_rows", "merge_rows"), attend(base, load), run)


def _attention_of_a_prompt(base: Base, prompt: int, device: torch.device, dtype: torch.dtype) -> Case:
    moved = 2 * prompt * (base.heads + base.kv_heads) * base.dim * dtype.itemsize
    cost = Cost(moved, 4.0 * prompt * (prompt + 1) / 2 * base.heads * base.dim)
    return Case("attention, prompt", ("attend_tiles",), cost, _attention(base, [(0, prompt)], device, dtype))


def _attention(
    base: Base, spans: list[tuple[int, int]], device: torch.device, dtype: torch.dtype
) -> Callable[[], object]:
    """Build an attention step; each sequence is given by its number of cached tokens and of new ones."""
    from graftwork.server.engine.backends.cuda.slot_attention import plan_for
    from graftwork.server.engine.kv.cache import CacheShape, KVCache

    shape = CacheShape(
        num_slots=len(spans),
        slot_length=max(sum(span) for span in spans),
        kv_sizes=((base.kv_heads, base.dim),),
        dtype=dtype,
        device=device,
    )
    plan = plan_for(KVCache(shape), [(slot, before, count) for slot, (before, count) in enumerate(spans)])
    num_tokens = sum(count for _, count in spans)
    query, key = (
        torch.randn(heads, num_tokens, base.dim, device=device, dtype=dtype) for heads in (base.heads, base.kv_heads)
    )
    return lambda: plan.attend(0, query, key, key, base.dim**-0.5, None, None)


def _nf4(family: Family, load: StepShape, device: torch.device, dtype: torch.dtype) -> Case:
    from graftwork.server.engine.model.weights import NF4Weights

    weights = NF4Weights([torch.randn(width, family.num_inputs, device=device) for width in family.widths], dtype)
    x = torch.randn(load.rows, family.num_inputs, device=device, dtype=dtype)
    return Case(f"NF4 {family.name} (bitsandbytes)", (), nf4_linear(family, load), lambda: weights.matmul(x))


# --- on the card ------------------------------------------------------------------------------------------------------


def device_seconds(run: Callable[[], object]) -> dict[str, float]:
    """Measure the GPU time of each kernel during one run, by the kernel's name."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(REPEATS):
            run()
        torch.cuda.synchronize()
    return {event.key: event.self_device_time_total / 1e6 / REPEATS for event in profile.key_averages()}


def measured_gpu() -> GPU:
    """Measure the memory bandwidth and the bfloat16 throughput of this GPU with torch's own kernels."""
    source = torch.empty(1 << 28, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    copy = sum(device_seconds(lambda: target.copy_(source)).values())
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    product = sum(device_seconds(lambda: a @ a).values())
    return GPU(torch.cuda.get_device_name(), 2 * source.nbytes / copy, 2 * 8192**3 / product)


@torch.inference_mode()
def main() -> None:
    """Print the time of each kernel beside its roofline."""
    parser = argparse.ArgumentParser(description="Our kernels on this card, beside the least time they could take.")
    parser.add_argument("--base", choices=BASES, default="llama-3-8b", help="whose sizes")
    parser.add_argument("--rows", type=int, default=32, help="sequences that decode")
    parser.add_argument("--adapters", type=int, default=32, help="different adapters among them")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--context", type=int, default=1024, help="tokens that each row sees")
    parser.add_argument("--prompt", type=int, default=2048, help="tokens of a prompt")
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit(
            "No CUDA device is here, so there is nothing to measure. Run this on a machine with an NVIDIA card and the "
            "CUDA build of torch; docs/gpu.md has the numbers to expect."
        )
    if not 1 <= asked.adapters <= asked.rows:
        sys.exit(f"--adapters {asked.adapters}: give 1 to {asked.rows}, each adapter has a row.")
    load = StepShape(rows=asked.rows, adapters=asked.adapters, rank=asked.rank, context=asked.context)
    card = measured_gpu()
    peaks = f"{card.bytes_per_second / 1e9:.0f} GB/s, {card.flops / 1e12:.0f} TFLOP/s in bfloat16"
    print(f"{card.name}, as measured: {peaks}\n")
    print("| kernel | µs | least µs | share |\n| --- | --- | --- | --- |")
    for case in build_cases(BASES[asked.base], load, asked.prompt, torch.device("cuda"), torch.bfloat16):
        times = device_seconds(case.run)
        seconds = sum(time for name, time in times.items() if not case.kernels or name.startswith(case.kernels))
        least = case.cost.seconds(card)
        print(f"| {case.name} | {1e6 * seconds:.1f} | {1e6 * least:.1f} | {least / seconds:.0%} |")


if __name__ == "__main__":
    main()
