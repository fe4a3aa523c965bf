"""The methods that a version can be trained by, and what they have in common."""

from __future__ import annotations

from typing import Final, Literal, get_args

TrainingMethod = Literal["sft", "weighted_sft", "dpo", "kto", "pretrain", "distillation", "grpo"]

TRAINING_METHODS: Final[tuple[TrainingMethod, ...]] = get_args(TrainingMethod)

SUPERVISED: Final[frozenset[TrainingMethod]] = frozenset({"sft", "weighted_sft"})
"""Methods whose rows are right answers, whatever the words of the question. Nothing but an anchor keeps them near to
the base."""

ONLINE: Final[frozenset[TrainingMethod]] = frozenset({"distillation", "grpo"})
"""Methods that learn from what the model answers while it trains."""

FULL: Final[frozenset[TrainingMethod]] = frozenset({"sft", "weighted_sft", "pretrain"})
"""Methods that can train a base as a whole."""

RANKED: Final[frozenset[TrainingMethod]] = frozenset({"sft", "weighted_sft", "pretrain", "dpo"})
"""Methods whose rows have an answer to measure how hard they are by."""
