"""The roofline of a decoding step on a GPU, kernel by kernel, as in docs/gpu.md.

The minimum time of a kernel is that of its bytes through the GPU's memory, or of its operations on the tensor cores,
whichever is longer. Repeated reads from the second-level cache are not counted. Plain arithmetic, without torch.

    python -m benchmarks.engine.gpu_roofline
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

#: Bytes of a value in bfloat16, and of a weight in NF4: half a byte, an 8-bit scale for 64 weights, and a 32-bit one
#: for 256 of those.
BF16 = 2
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)

#: Rank rows of a page, and the most slabs that ``shrink`` writes: see server/engine/backends/cuda/lora.py.
RANK_PAGE = 16
SPLITS = 8


@dataclass(frozen=True, slots=True)
class GPU:
    """A GPU: memory bandwidth in bytes per second, and dense bfloat16 throughput in floating-point operations per
    second, by its data sheet."""

    name: str
    bytes_per_second: float
    flops: float


GPUS = [GPU("A100 80 GB SXM", 2039e9, 312e12), GPU("H100 SXM", 3350e9, 989e12), GPU("L4", 300e9, 121e12)]


@dataclass(frozen=True, slots=True)
class Cost:
    """The minimum cost of an operation: bytes that it moves through memory, and floating-point operations."""

    num_bytes: float
    flops: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.num_bytes + other.num_bytes, self.flops + other.flops)

    def __mul__(self, times: float) -> Cost:
        return Cost(self.num_bytes * times, self.flops * times)

    def seconds(self, gpu: GPU) -> float:
        """Return the minimum time on a GPU, in seconds."""
        return max(self.num_bytes / gpu.bytes_per_second, self.flops / gpu.flops)


@dataclass(frozen=True, slots=True)
class Family:
    """Linear layers with the same input.

    Attributes:
        name: their names.
        num_inputs: input width.
        widths: output width of each layer.
        count: number of such families in a base.
    """

    name: str
    num_inputs: int
    widths: tuple[int, ...]
    count: int

    @property
    def num_outputs(self) -> int:
        """Sum of the output widths."""
        return sum(self.widths)


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """The sizes of a Llama model."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    dim: int
    intermediate: int
    vocabulary: int

    @property
    def grafted(self) -> list[Family]:
        """The layers that an adapter on all seven projections adapts."""
        kv = self.kv_heads * self.dim
        return [
            Family("q, k, v", self.hidden, (self.heads * self.dim, kv, kv), self.layers),
            Family("o", self.heads * self.dim, (self.hidden,), self.layers),
            Family("gate, up", self.hidden, (self.intermediate, self.intermediate), self.layers),
            Family("down", self.intermediate, (self.hidden,), self.layers),
        ]

    @property
    def linears(self) -> list[Family]:
        """All linear layers, with the head."""
        return [*self.grafted, Family("head", self.hidden, (self.vocabulary,), 1)]


BASES = {
    base.name: base
    for base in (
        Base(
            name="llama-2-7b",
            hidden=4096,
            layers=32,
            heads=32,
            kv_heads=32,
            dim=128,
            intermediate=11008,
            vocabulary=32000,
        ),
        Base(
            name="llama-3-8b",
            hidden=4096,
            layers=32,
            heads=32,
            kv_heads=8,
            dim=128,
            intermediate=14336,
            vocabulary=128256,
        ),
    )
}


@dataclass(frozen=True, kw_only=True, slots=True)
class StepShape:
    """A decoding step of ``rows`` tokens, with ``adapters`` different adapters of ``rank``; each row attends to
    ``context`` positions."""

    rows: int = 32
    adapters: int = 32
    rank: int = 16
    context: int = 1024

    @property
    def pages(self) -> int:
        """Number of rank pages of an adapter."""
        return -(-self.rank // RANK_PAGE)


def nf4_linear(family: Family, load: StepShape) -> Cost:
    """Return the cost of a family's base weights, read once in 4 bits. bitsandbytes moves more: see docs/gpu.md."""
    num_weights = family.num_inputs * family.num_outputs
    moved = num_weights * NF4 + load.rows * (family.num_inputs + family.num_outputs) * BF16
    return Cost(moved, 2.0 * load.rows * num_weights)


def shrink(family: Family, load: StepShape) -> Cost:
    """Return the cost of h = A·x: A of each adapter and x are read once, h is written."""
    width = load.pages * RANK_PAGE * len(family.widths)
    h = 4 * load.rows * width * min(SPLITS, -(-family.num_inputs // 512))
    moved = (load.adapters * width + load.rows) * family.num_inputs * BF16 + h
    return Cost(moved, 2.0 * load.rows * width * family.num_inputs)


def expand(family: Family, load: StepShape) -> Cost:
    """Return the cost of y += B·h: B of each adapter and h are read once, y is read and written."""
    rank = load.pages * RANK_PAGE
    h = 4 * load.rows * rank * len(family.widths) * min(SPLITS, -(-family.num_inputs // 512))
    moved = (load.adapters * rank + 2 * load.rows) * family.num_outputs * BF16 + h
    return Cost(moved, 2.0 * load.rows * rank * family.num_outputs)


def attend(base: Base, load: StepShape) -> Cost:
    """Return the cost of attention in one layer: keys and values of each row are read once."""
    moved = load.rows * load.context * 2 * base.kv_heads * base.dim * BF16
    return Cost(moved, 4.0 * load.rows * load.context * base.heads * base.dim)


def whole_step(base: Base, load: StepShape) -> dict[str, Cost]:
    """Return the cost of a decoding step by kind of kernel."""

    def total(costs: Sequence[Cost]) -> Cost:
        return sum(costs, Cost(0, 0))

    return {
        "weights": total([nf4_linear(family, load) * family.count for family in base.linears]),
        "shrink": total([shrink(family, load) * family.count for family in base.grafted]),
        "expand": total([expand(family, load) * family.count for family in base.grafted]),
        "attention": attend(base, load) * base.layers,
    }


def table(base: Base, load: StepShape, cards: Sequence[GPU] = GPUS) -> str:
    """Format a decoding step as Markdown: bytes, operations, and the minimum time on each GPU in milliseconds."""
    costs = whole_step(base, load)
    lines = [
        f"| {base.name} | GB | GFLOP | {' | '.join(f'{card.name}, ms' for card in cards)} |",
        f"| --- | {' | '.join('---' for _ in range(2 + len(cards)))} |",
    ]
    for name, cost in costs.items():
        times = " | ".join(f"{1e3 * cost.seconds(card):.2f}" for card in cards)
        lines.append(f"| {name} | {cost.num_bytes / 1e9:.2f} | {cost.flops / 1e9:.1f} | {times} |")
    seconds = [sum(cost.seconds(card) for cost in costs.values()) for card in cards]
    moved, flops = (sum(getattr(cost, name) for cost in costs.values()) for name in ("num_bytes", "flops"))
    times = " | ".join(f"**{1e3 * each:.2f}**" for each in seconds)
    lines.append(f"| **a step** | {moved / 1e9:.2f} | {flops / 1e9:.1f} | {times} |")
    lines.append(f"| tokens/s | | | {' | '.join(f'{load.rows / each:,.0f}' for each in seconds)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the tables of all bases."""
    parser = argparse.ArgumentParser(description="The least that a decoding step must take on a card.")
    parser.add_argument("--rows", type=int, default=32, help="sequences that decode")
    parser.add_argument("--adapters", type=int, default=32, help="different adapters among them")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--context", type=int, default=1024, help="tokens that each row sees")
    load = StepShape(**vars(parser.parse_args()))
    print("\n\n".join(table(base, load) for base in BASES.values()))


if __name__ == "__main__":
    main()
