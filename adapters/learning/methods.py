"""The training methods, and groups of them."""

from __future__ import annotations

from typing import Final, Literal, get_args

TrainingMethod = Literal["sft", "weighted_sft", "dpo", "kto", "pretrain", "distillation", "grpo"]

TRAINING_METHODS: Final[tuple[TrainingMethod, ...]] = get_args(TrainingMethod)

SUPERVISED: Final[frozenset[TrainingMethod]] = frozenset({"sft", "weighted_sft"})
"""Methods whose rows are right answers. Only the knob ``anchor`` keeps the model near to the base."""

ONLINE: Final[frozenset[TrainingMethod]] = frozenset({"distillation", "grpo"})
"""Methods that train on answers that the model generates during training."""

FULL: Final[frozenset[TrainingMethod]] = frozenset({"sft", "weighted_sft", "pretrain"})
"""Methods that can train all weights of a base."""

RANKED: Final[frozenset[TrainingMethod]] = frozenset({"sft", "weighted_sft", "pretrain", "dpo"})
"""Methods whose rows have an answer, by which their difficulty can be measured."""
