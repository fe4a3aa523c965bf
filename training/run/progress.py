"""The progress and the metrics of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingStep:
    """The progress of a run after an optimizer step, or before the first one (``step`` 0)."""

    step: int
    num_steps: int
    """Number of steps of the whole run."""
    loss: float | None
    """Mean over the step's learned tokens, in nats."""
    learning_rate: float | None
    num_tokens: int
    """Number of tokens processed so far, without padding."""
    seconds: float
    """Time since the first step began."""
    validation_loss: float | None
    """The latest validation loss, in nats per learned token."""
    reward: float | None = None
    """For GRPO: mean reward of the step's completions."""
    validation_reward: float | None = None
    """For GRPO: the latest mean reward on the validation rows."""
    passed: float | None = None
    """With a grader: share of the step's completions that pass."""
    validation_passed: float | None = None
    """With a grader: the latest share of the validation rows whose completion passes."""
    grades: Mapping[str, float] = field(default_factory=dict)
    """With a grader of several: mean grade of the step's completions by each."""
    validation_grades: Mapping[str, float] = field(default_factory=dict)
    """The same on the validation rows."""
    trial: int = 0
    """In a search: the number of the trial, from 1. Steps, tokens and seconds are then those of all trials."""
    trials: int = 0
    """In a search: the number of trials."""

    @property
    def tokens_per_second(self) -> float | None:
        """Mean throughput so far; None before the first step."""
        return self.num_tokens / self.seconds if self.seconds > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """Estimated remaining time; None before the first step."""
        return self.seconds / self.step * (self.num_steps - self.step) if self.step else None


StepListener = Callable[[TrainingStep], None]
"""Called after each step of a run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunMetrics:
    """The metrics of a finished run, for the model card and the version's metadata. Losses are in nats per learned
    token."""

    num_steps: int
    num_tokens: int
    """Number of tokens processed in training, without padding."""
    seconds: float
    """Duration from the first step to the end of the last, including evaluations."""
    first_loss: float
    """Training loss of the first step."""
    last_loss: float
    """Mean training loss of the last tenth of the steps."""
    base_validation_loss: float | None
    """Validation loss before the first step: of the base, or of the version that is trained further."""
    validation_loss: float | None
    """Validation loss of the finished adapter."""
    validation_token_accuracy: float | None
    """Share of the learned tokens of validation rows that were the most likely ones."""
    first_reward: float | None = None
    """For GRPO: mean reward of the first step's completions."""
    last_reward: float | None = None
    """For GRPO: mean reward of the last tenth of the steps."""
    base_validation_reward: float | None = None
    """For GRPO: mean reward on the validation rows before the first step."""
    validation_reward: float | None = None
    """For GRPO: mean reward of the finished adapter on the validation rows."""
    base_validation_passed: float | None = None
    """With a grader: share of the validation rows whose completion passes before the first step."""
    validation_passed: float | None = None
    """With a grader: the same for the finished adapter."""
    base_validation_grades: Mapping[str, float] = field(default_factory=dict)
    """With a grader of several: mean grade of the validation rows by each before the first step."""
    validation_grades: Mapping[str, float] = field(default_factory=dict)
    """The same for the finished adapter."""
    replay_loss_before: float | None = None
    """Loss on held-out rows of earlier rounds before the first step."""
    replay_loss: float | None = None
    """The last loss on those rows."""
    ended_early: bool = False
    """Whether that loss exceeded its limit, so that the adapter is the one from before it did."""
    num_trainable: int
    """Number of trained parameters."""
    device: str
    precision: str
    """The dtype of the forward pass."""

    def to_json(self) -> dict[str, Any]:
        """Return every field by name, with numbers rounded to six significant digits."""
        return {
            name: float(f"{value:.6g}") if isinstance(value, float) else value
            for name, value in dataclasses.asdict(self).items()
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchTrial:
    """One trial of a search: its hyperparameters and its result."""

    number: int
    """The number of the trial, from 1."""
    learning_rate: float
    rank: int
    epochs: float
    loss: float | None
    """Validation loss in nats per learned token; the last one for a trial that was pruned."""
    outcome: str
    """``finished``, ``pruned`` or ``failed``."""
    reason: str = ""
    """Why it did not finish."""
    best: bool = False
    """Whether it is the best trial."""

    def to_json(self) -> dict[str, Any]:
        """Return every field by name, with the loss rounded to six significant digits."""
        loss = None if self.loss is None else float(f"{self.loss:.6g}")
        return {**dataclasses.asdict(self), "loss": loss}
