"""The trainer callback of a run: reports steps, publishes checkpoints, and stops a run that diverges, forgets too much
or is asked to stop.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import peft
import safetensors.torch
import torch
import transformers
from transformers.trainer import TRAINER_STATE_NAME

from graftwork.adapters.errors import GraftworkError
from graftwork.adapters.learning.methods import METHOD_TRAITS
from graftwork.training.config import TrainConfig
from graftwork.training.methods.grpo import GRADE, PASSED
from graftwork.training.run import checkpoints
from graftwork.training.run.checkpoints import Checkpointing
from graftwork.training.run.progress import RunMetrics, StepListener, TrainingStep

VALIDATION: Final = "validation"
"""Name of the evaluation set of validation rows."""


REPLAY: Final = "replay"
"""Name of the evaluation set of held-out rows of earlier rounds."""


BEFORE_FORGETTING_FILE: Final = "before_forgetting.safetensors"
"""File in a checkpoint: the adapter's weights when the loss on earlier rounds was last within its limit."""


FORGOT_FILE: Final = "forgot"
"""Marker file in a checkpoint: the loss on earlier rounds exceeded its limit, and the run is finished."""


class RunCallback(transformers.TrainerCallback):
    """Reports the steps of a run, publishes its checkpoints, and stops it early where needed.

    Args:
        on_step: called after each step and each evaluation.
        config: the configuration of the run.
        keeping: where checkpoints are stored, and whether to stop; None for a run without checkpoints.

    Attributes:
        stopped: whether the run was asked to stop and did.
        ended: whether the resumed checkpoint is one of a finished run, so that no step must follow.
    """

    def __init__(self, on_step: StepListener, config: TrainConfig, keeping: Checkpointing | None) -> None:
        self._on_step = on_step
        self._config = config
        self._keeping = keeping
        self._began = time.perf_counter()
        self._first_step = 0
        self._tokens_before = 0
        self._last = TrainingStep(
            step=0, num_steps=0, loss=None, learning_rate=None, num_tokens=0, seconds=0.0, validation_loss=None
        )
        self._trainer: Any = None
        self._model: Any = None
        self._before: dict[str, torch.Tensor] | None = None
        self._forgot = False
        self._saved: int | None = None
        self.stopped = False
        self.ended = False

    def attach(self, trainer: Any, model: peft.PeftModel, resumed: Path | None) -> None:
        """Set the trainer and the model before training begins.

        Args:
            trainer: the trainer that calls this callback.
            model: the model that it trains.
            resumed: the checkpoint that the run continues from.
        """
        self._trainer, self._model = trainer, model
        if resumed is not None and (resumed / BEFORE_FORGETTING_FILE).is_file():
            self._before = safetensors.torch.load_file(resumed / BEFORE_FORGETTING_FILE)
        if resumed is not None and (resumed / FORGOT_FILE).is_file():
            self._forgot = self.ended = True
            trainer.state = transformers.TrainerState.load_from_json(str(resumed / TRAINER_STATE_NAME))
            self.on_train_begin(None, trainer.state, None)

    # --- called by transformers -------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore the token count of a resumed run, and report the step that it begins at."""
        self._first_step = state.global_step
        logged = [line for line in state.log_history if "num_tokens" in line and "loss" in line]
        if logged:
            self._trainer._total_train_tokens = logged[-1]["num_tokens"]
            self._tokens_before = int(logged[-1]["num_tokens"])
        self._report(step=state.global_step, num_steps=state.max_steps, num_tokens=self._tokens_before)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock at the first step."""
        if state.global_step == self._first_step:
            self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop if the run is asked to stop."""
        if self._keeping is not None and self._keeping.should_stop() and state.global_step < state.max_steps:
            self.stopped = True
            control.should_save = control.should_training_stop = True
        ends_epoch = state.global_step >= state.max_steps or state.epoch.is_integer()
        interval = self._config.eval_interval
        if interval and self._trainer.eval_dataset and state.global_step % interval == 0 and not ends_epoch:
            control.should_evaluate = True
        if ends_epoch:
            # `on_epoch_end` saves, after the evaluation: a run that is resumed here does not evaluate again.
            control.should_save = False

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save at the end of each epoch."""
        if self._keeping is not None and self._saved != state.global_step:
            control.should_save = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        """Report a step.

        Raises:
            GraftworkError: with code ``training_diverged`` if the loss is not finite.
        """
        if "loss" not in logs:
            return
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise diverged(f"The loss is {loss} at step {state.global_step} of {state.max_steps}")
        self._report(
            step=state.global_step,
            loss=loss,
            learning_rate=float(logs["learning_rate"]),
            reward=logs.get("reward"),
            passed=logs.get(PASSED),
            grades=_grades(logs),
            num_tokens=int(logs["num_tokens"]),
            seconds=time.perf_counter() - self._began,
        )

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        """Report a validation loss or reward; stop the run if the loss on earlier rounds exceeds its limit."""
        if (reward := metrics.get("eval_reward")) is not None:
            # GRPO's loss is not reported: it does not measure progress.
            self._report(
                validation_reward=reward,
                validation_passed=metrics.get(f"eval_{PASSED}"),
                validation_grades=_grades(metrics, "eval_"),
            )
        elif (loss := metrics.get(f"eval_{VALIDATION}_loss")) is not None:
            self._report(validation_loss=loss)
        if (loss := metrics.get(f"eval_{REPLAY}_loss")) is not None and self._forgetting_limit is not None:
            first = next(line[f"eval_{REPLAY}_loss"] for line in state.log_history if f"eval_{REPLAY}_loss" in line)
            if loss <= first * (1 + self._forgetting_limit):
                self._before = {
                    name: weight.detach().cpu().clone()
                    for name, weight in self._model.named_parameters()
                    if weight.requires_grad
                }
            else:
                self._forgot = True
                control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Publish the checkpoint that transformers has written."""
        assert self._keeping is not None
        written = Path(args.output_dir, f"checkpoint-{state.global_step}")
        if self._before is not None:
            safetensors.torch.save_file(self._before, written / BEFORE_FORGETTING_FILE)
            if self._forgot:
                (written / FORGOT_FILE).touch()
        self._saved = state.global_step
        checkpoints.publish(written, self._keeping.folder, state.global_step)
        self._keeping.on_checkpoint(state.global_step)

    # --- the result -------------------------------------------------------------------------------------------------

    @property
    def _forgetting_limit(self) -> float | None:
        """Maximum relative increase of the loss on earlier rounds; None for DPO and KTO, whose losses do not measure
        forgetting."""
        learns_from = METHOD_TRAITS[self._config.method].learns_from
        return self._config.forgetting if learns_from == "answers" else None

    def undo_forgetting(self) -> None:
        """Restore the weights from before the loss on earlier rounds exceeded its limit, if it did."""
        if self._forgot and self._before is not None:
            for name, weight in self._model.named_parameters():
                if name in self._before:
                    weight.data.copy_(self._before[name])

    def _report(self, **changes: Any) -> None:
        self._last = dataclasses.replace(self._last, **changes)
        self._on_step(self._last)

    def metrics(self, *, num_trainable: int, device: str, precision: str) -> RunMetrics:
        """Return the metrics of the finished run.

        Args:
            num_trainable: number of trained parameters.
            device: ``cuda`` or ``cpu``.
            precision: dtype of the forward pass.
        """
        history = self._trainer.state.log_history
        losses = [line["loss"] for line in history if "loss" in line]
        rewards = [line["reward"] for line in history if "loss" in line and "reward" in line]
        rewarded = [line for line in history if "eval_reward" in line]
        looks = [line for line in history if f"eval_{VALIDATION}_loss" in line and not rewarded] or [{}]
        replays = [line[f"eval_{REPLAY}_loss"] for line in history if f"eval_{REPLAY}_loss" in line]
        if self._forgot and len(looks) > 1:
            looks.pop()  # of weights that are discarded
        last_tenth = max(len(losses) // 10, 1)
        return RunMetrics(
            num_steps=self._trainer.state.global_step,
            num_tokens=self._last.num_tokens,
            seconds=time.perf_counter() - self._began,
            first_loss=losses[0],
            last_loss=statistics.fmean(losses[-last_tenth:]),
            base_validation_loss=looks[0].get(f"eval_{VALIDATION}_loss"),
            validation_loss=looks[-1].get(f"eval_{VALIDATION}_loss"),
            validation_token_accuracy=looks[-1].get("eval_mean_token_accuracy"),
            first_reward=rewards[0] if rewards else None,
            last_reward=statistics.fmean(rewards[-last_tenth:]) if rewards else None,
            base_validation_reward=rewarded[0]["eval_reward"] if rewarded else None,
            validation_reward=rewarded[-1]["eval_reward"] if rewarded else None,
            base_validation_passed=rewarded[0].get(f"eval_{PASSED}") if rewarded else None,
            validation_passed=rewarded[-1].get(f"eval_{PASSED}") if rewarded else None,
            base_validation_grades=_grades(rewarded[0], "eval_") if rewarded else {},
            validation_grades=_grades(rewarded[-1], "eval_") if rewarded else {},
            replay_loss_before=replays[0] if replays else None,
            replay_loss=replays[-1] if replays else None,
            ended_early=self._forgot,
            num_trainable=num_trainable,
            device=device,
            precision=precision,
        )


def _grades(logs: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The mean grade by each part of a grader, among what was logged."""
    begin = f"{prefix}{GRADE}"
    return {name.removeprefix(begin): value for name, value in logs.items() if name.startswith(begin)}


def diverged(what: str) -> GraftworkError:
    """Return the error for a run that diverged; ``what`` is the beginning of its message."""
    return GraftworkError(
        f"{what}: the run has diverged, and nothing was written. Try a smaller --learning-rate (a fifth of it), and "
        "look for very long or broken answers in the data.",
        code="training_diverged",
    )
