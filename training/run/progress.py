"""Where a run stands and what came out of it, in numbers. Knows neither who counts them nor who shows them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingStep:
    """Where a run stands after one optimizer step, or before the first (``step`` 0)."""

    step: int
    num_steps: int
    loss: float | None
    """Mean over the step's learned tokens, in nats."""
    learning_rate: float | None
    num_tokens: int
    """Read so far, padding not counted."""
    seconds: float
    """Since the first step began."""
    validation_loss: float | None
    """The latest one, in nats per learned token."""
    reward: float | None = None
    """Of GRPO: the mean of the step's answers."""
    validation_reward: float | None = None
    """Of GRPO: the latest mean on the validation rows."""
    trial: int = 0
    """Of a search: which trial this is, from 1. Steps, tokens and seconds are then those of all its trials."""
    trials: int = 0
    """Of a search: how many there will be."""

    @property
    def tokens_per_second(self) -> float | None:
        return self.num_tokens / self.seconds if self.seconds > 0 else None

    @property
    def seconds_left(self) -> float | None:
        return self.seconds / self.step * (self.num_steps - self.step) if self.step else None


StepListener = Callable[[TrainingStep], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunMetrics:
    """What came out of a run, for the card and the version's metadata."""

    num_steps: int
    num_tokens: int
    """Read in training, padding not counted."""
    seconds: float
    """From the first step to the end of the last, looks at the validation rows included."""
    first_loss: float
    """Of the first step, in nats per learned token."""
    last_loss: float
    """Mean over the last tenth of the steps."""
    base_validation_loss: float | None
    """On the validation rows, before the first step: what the base, or the version that is continued, makes of them."""
    validation_loss: float | None
    """On the validation rows, of the finished adapter."""
    validation_token_accuracy: float | None
    """Share of the validation rows' learned tokens that were the likeliest at their place."""
    first_reward: float | None = None
    """Of GRPO: the mean of the first step's answers."""
    last_reward: float | None = None
    """The mean over the last tenth of the steps."""
    base_validation_reward: float | None = None
    """The mean on the validation rows, before the first step."""
    validation_reward: float | None = None
    """The mean on them, of the finished adapter."""
    replay_loss_before: float | None = None
    """On held-out rows of older rounds, before the first step."""
    replay_loss: float | None = None
    """On them, when they were last looked at."""
    ended_early: bool = False
    """Whether that loss rose too far, and the adapter is the one from before it did."""
    num_trainable: int
    """Parameters of the adapter."""
    device: str
    precision: str
    """What the forward pass computed in."""

    def to_json(self) -> dict[str, Any]:
        """Every field by name; times and losses to a sensible number of digits."""
        return {
            name: float(f"{value:.6g}") if isinstance(value, float) else value
            for name, value in dataclasses.asdict(self).items()
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchTrial:
    """One of the runs of a search: what was tried, and what came of it."""

    number: int
    """From 1."""
    learning_rate: float
    rank: int
    epochs: float
    loss: float | None
    """On the held-out rows, in nats per learned token; of one that was given up, when it was last looked at."""
    outcome: str
    """``finished``; ``pruned``, as worse than most; ``failed``."""
    reason: str = ""
    """Why it did not finish."""
    best: bool = False

    def to_json(self) -> dict[str, Any]:
        """Every field by name, the loss to a sensible number of digits."""
        loss = None if self.loss is None else float(f"{self.loss:.6g}")
        return {**dataclasses.asdict(self), "loss": loss}
