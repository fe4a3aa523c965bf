"""How long a run will take, measured before its first step: one step is tried with the run's own rows and model, on
this machine as busy as it is, and nothing of it is kept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

import torch

from graftwork.training.methods.samplers import LengthGroupedSampler
from graftwork.training.model.adapter import base_model_of

MOST_TRIED: Final = 0.05
"""Share of a run's rows, times its epochs, that are tried out at most."""

FEWEST_TRIED: Final = 4
"""Number of rows that are tried out at least."""

FORWARD_SHARE: Final = 0.4
"""Time of measuring a row, as a share of that of learning from it, which goes backward as well."""


def expected_seconds(trainer: Any, num_steps: int) -> float | None:
    """Return how long the steps of a run and its evaluations will take; None if its answers are yet to be generated, or
    there are no steps.

    Args:
        trainer: a trainer that is about to take its first step. Its random numbers, gradients and measurements are
            what they were afterwards.
        num_steps: number of optimizer steps.
    """
    order = trainer.order
    if not isinstance(order, LengthGroupedSampler) or not num_steps:
        return None
    batch = order.typical_batch()
    # All rows of a step, unless that is much of a short run.
    tried = batch[: max(FEWEST_TRIED, int(num_steps * len(batch) * MOST_TRIED))]
    tokens_before = trainer._total_train_tokens
    with torch.random.fork_rng():
        _seconds_of_step(trainer, batch[:1])  # the first pass allocates memory that later ones find there
        step = _seconds_of_step(trainer, tried) * len(batch) / len(tried)
        penalty = _seconds_of_penalty(trainer, num_steps)
    trainer._total_train_tokens = tokens_before
    for measured in (getattr(trainer, "_metrics", {}), getattr(trainer, "_stored_metrics", {})):
        measured.get("train", {}).clear()
    num_measured = sum(map(len, (trainer.eval_dataset or {}).values()))
    times_measured = trainer.args.num_train_epochs + 1 if num_measured else 0
    return num_steps * (step + penalty) + times_measured * num_measured * FORWARD_SHARE * step / len(batch)


def _seconds_of_step(trainer: Any, rows: Sequence[int]) -> float:
    """Go through a step without its update: forward and backward, for all its micro-batches."""
    size = trainer.args.per_device_train_batch_size
    parts = [
        trainer.data_collator([trainer.train_dataset[row] for row in rows[start : start + size]])
        for start in range(0, len(rows), size)
    ]
    trainer.current_gradient_accumulation_steps = len(parts)
    # Otherwise the last micro-batch would add the anchor's penalty, which not every step has.
    trainer.accelerator.gradient_state._set_sync_gradients(False)
    began = time.perf_counter()
    batches, num_items = trainer.get_batch_samples(iter(parts), len(parts), trainer.args.device)
    for batch in batches:
        float(trainer.training_step(trainer.model, batch, num_items))  # waits for the device
    seconds = time.perf_counter() - began
    trainer.model.zero_grad(set_to_none=True)
    return seconds


def _seconds_of_penalty(trainer: Any, num_steps: int) -> float:
    """The time of the anchor's penalty, divided among the steps."""
    anchor = getattr(trainer, "anchor", None)
    if anchor is None:
        return 0.0
    began = time.perf_counter()
    with trainer.compute_loss_context_manager():
        divergence = anchor.divergence(base_model_of(trainer.model), 0)
    trainer.accelerator.backward(divergence)
    seconds = time.perf_counter() - began
    trainer.model.zero_grad(set_to_none=True)
    return seconds / float(anchor.interval(num_steps))
