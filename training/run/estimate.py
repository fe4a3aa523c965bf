"""A rough estimate of the memory and time of a run, before it begins."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import torch

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.learning.methods import METHOD_TRAITS
from graftwork.training.config import TrainConfig
from graftwork.training.data.tokens import IGNORED, LabeledTokens, TokenRow
from graftwork.training.model.precision import compute_precision

GIGABYTE: Final = 1_000_000_000

_BYTES_PER_WEIGHT: Final = {"bfloat16": 2.0, "float32": 4.0, "nf4": 0.56}


_RUNTIME_BYTES: Final = 900_000_000
"""Memory of a process with torch, transformers and TRL."""

_KEPT_PER_TOKEN_AND_LAYER: Final = 24
"""Approximate size of a layer's activations for the backward pass per token, in multiples of the hidden size."""

_SHARE_OF_PEAK: Final = 0.35
"""Speed of a training step, as a share of the speed of a large matrix product."""


_WRITING: Final = 4
"""How many times slower a token is generated than read: each step of a small batch reads all weights."""


def duration(seconds: float) -> str:
    """Return a time in words: ``40 seconds``, ``3 minutes``."""
    minutes = seconds / 60
    return f"{minutes:.0f} minutes" if minutes >= 1.5 else f"{seconds:.0f} seconds"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The estimated memory and duration of a run."""

    memory_bytes: int
    seconds: float
    free_bytes: int | None
    """Free memory of this machine; None if it is unknown."""
    is_timed_later: bool = False
    """Whether the time is measured before the first step, which is right where this is rough; see `rehearsal`."""

    @property
    def is_tight(self) -> bool:
        """Whether the run needs more memory than is free."""
        return self.free_bytes is not None and self.memory_bytes > self.free_bytes

    def __str__(self) -> str:
        took = "" if self.is_timed_later else f"{duration(self.seconds)} and "
        text = f"It will take about {took}{self.memory_bytes / GIGABYTE:.1f} GB of memory"
        if self.is_tight and self.free_bytes is not None:
            return f"{text}, and {self.free_bytes / GIGABYTE:.1f} GB are free: it may run out of it."
        return f"{text}."


def estimate_cost(
    base: BaseInfo,
    config: TrainConfig,
    *,
    num_tokens: int,
    longest: int,
    num_learned: int,
    precision: str,
    num_written: int = 0,
) -> Estimate:
    """Estimate the cost of a run, or of a search with all its trials.

    Args:
        base: the base.
        config: the configuration of the run.
        num_tokens: tokens in an epoch, including generated ones.
        longest: length of the longest row, in tokens.
        num_learned: tokens with a loss in an epoch.
        precision: dtype of the forward pass, ``bfloat16`` or ``float32``.
        num_written: tokens that are generated in an epoch, at most.
    """
    weights = base.num_parameters * _BYTES_PER_WEIGHT["nf4" if config.quantization == "nf4" else precision]
    linear = [module for module in base.modules.values() if module.kind == "linear"]
    rank = 2 * config.rank if config.search else config.rank  # the largest that a search tries
    full = config.variant == "full"
    weights = base.num_parameters * _BYTES_PER_WEIGHT["float32"] if full else weights
    trained = base.num_parameters if full else sum(rank * sum(module.shape) for module in linear)
    together = max(config.micro_batch_tokens, longest)
    width = base.hidden_size * _BYTES_PER_WEIGHT[precision]
    kept = together * base.num_layers * width * _KEPT_PER_TOKEN_AND_LAYER
    # Logits of the learned positions, their softmax and its gradient, in float32.
    head = together * min(num_learned / max(num_tokens, 1), 1) * base.vocab_size * 4 * 3
    # Weight, gradient, Adam's two moments.
    memory = _RUNTIME_BYTES + weights + trained * 16 + kept + head
    # Forward, and backward through frozen weights: 2 operations a weight and token each. References go through once
    # more, pairs have two answers.
    passes = (6 if full else 4) + (2 if METHOD_TRAITS[config.method].has_reference else 0)
    operations = passes * base.num_parameters * num_tokens * config.epochs * _answers_per_row(config)
    operations += 2 * base.num_parameters * num_written * config.epochs * _WRITING
    return Estimate(
        memory_bytes=int(memory),
        seconds=max(config.search, 1) * operations / (_operations_per_second(precision) * _SHARE_OF_PEAK),
        free_bytes=_free_bytes(),
        is_timed_later=not (config.is_online or config.search),
    )


def _answers_per_row(config: TrainConfig) -> int:
    return 2 if METHOD_TRAITS[config.method].learns_from == "pairs" else 1


@cache
def _operations_per_second(precision: str) -> float:
    """Measure the floating-point operations per second of a matrix product, in some milliseconds."""

    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 4096 if device == "cuda" else 768
    matrix = torch.randn(size, size, device=device, dtype=getattr(torch, precision))
    best = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        product = matrix @ matrix
        float(product[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def _free_bytes() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def estimate_run(base: BaseInfo, rows: Sequence[TokenRow], config: TrainConfig) -> Estimate:
    """Estimate the cost of a run on tokenized rows on this machine."""
    written = config.max_generated_tokens * config.completions_per_prompt * len(rows)
    learned = written or sum(
        sum(label != IGNORED for label in row.labels) if isinstance(row, LabeledTokens) else len(row) for row in rows
    )
    return estimate_cost(
        base,
        config,
        num_tokens=sum(map(len, rows)) * config.completions_per_prompt + written,
        longest=max(map(len, rows)) + config.max_generated_tokens,
        num_learned=learned,
        num_written=written,
        precision=compute_precision(config),
    )


def fitting_micro_batch_tokens(base: BaseInfo, rows: Sequence[TokenRow], config: TrainConfig) -> int:
    """Return ``config.micro_batch_tokens``, halved until the run fits into free memory or has one row per micro-batch.

    This is necessary on CPUs, where an allocation does not fail but the process is killed later.
    """
    tokens, longest = config.micro_batch_tokens, max(map(len, rows)) + config.max_generated_tokens
    while (
        tokens > longest and estimate_run(base, rows, dataclasses.replace(config, micro_batch_tokens=tokens)).is_tight
    ):
        tokens //= 2
    return tokens


def micro_batch_size(config: TrainConfig, longest: int) -> int:
    """Return the number of rows in a forward pass: the largest divisor of the batch size such that padded rows do not
    exceed ``config.micro_batch_tokens``; at least 1.

    Args:
        config: the configuration of the run. A pair counts twice, for its two answers.
        longest: length of the longest row, in tokens.
    """
    fitting = max(config.micro_batch_tokens // (longest * _answers_per_row(config)), 1)
    return max(size for size in range(1, config.batch_size + 1) if config.batch_size % size == 0 and size <= fitting)
