"""One run: token ids in, the two files of a PEFT adapter out.

The conductor of ``grafts`` (PEFT) and ``objectives`` (TRL). Knows nothing of files of rows, of names and versions, of
the server, nor of the terminal: what happens is told to a callback, step by step, and what went wrong is an exception.
Nothing is written but the finished adapter and, where somebody keeps them, checkpoints.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from graftwork.training import tracking

os.environ.update(tracking.SILENT)  # TRL reports every run otherwise

import huggingface_hub.constants
import peft
import safetensors.torch
import tokenizers
import torch
import transformers
from transformers import PreTrainedModel
from transformers.trainer import TRAINER_STATE_NAME

from graftwork.adapters.base import BaseInfo, load_model
from graftwork.adapters.errors import GraftworkError
from graftwork.training import checkpoints, grafts, head, objectives, whole_model
from graftwork.training.anchor import Anchor
from graftwork.training.config import SUPERVISED, TrainConfig
from graftwork.training.data.tokens import IGNORED, TokenRow, Tokens
from graftwork.training.estimate import Estimate, estimate
from graftwork.training.grafts import trainable
from graftwork.training.progress import Listener, Metrics, Step

# Something else may have imported the hub's library before the line above.
huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True

CHECKPOINTING_ABOVE = 1_000_000_000
"""Parameters of a base above which activations are computed again in the backward pass instead of kept. Below,
``micro_batch_tokens`` keeps them small, and keeping them saves a second forward pass."""

VALIDATION: Final = "validation"
REPLAY: Final = "replay"
BEFORE: Final = "before_forgetting.safetensors"
"""In a checkpoint: the adapter as it was when the loss on older rounds was last within bounds."""
FORGOT: Final = "forgot"
"""In a checkpoint: that the loss was not within bounds any more, and the run is at its end."""


class Stopped(Exception):
    """Somebody asked the run to end; its newest checkpoint is whole."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keeping:
    """Where checkpoints are kept, who hears of them, and who may end the run in between."""

    folder: Path
    on_checkpoint: Callable[[int], None] = lambda step: None
    should_stop: Callable[[], bool] = lambda: False


def train(
    base: BaseInfo,
    rows: Sequence[TokenRow],
    validation: Sequence[TokenRow],
    config: TrainConfig,
    folder: Path,
    on_step: Listener,
    *,
    parent: Path | None = None,
    teacher: BaseInfo | None = None,
    replay_validation: Sequence[TokenRow] = (),
    keeping: Keeping | None = None,
    run_name: str | None = None,
) -> Metrics:
    """Train an adapter on ``rows`` and write adapter_config.json and adapter_model.safetensors into ``folder``; where
    all weights are trained, a model's whole folder.

    The rows are as the method takes them: Tokens, PairTokens, JudgedTokens or QuestionTokens. ``parent`` is the PEFT
    folder of the version to continue; without, the adapter is a fresh one. ``teacher`` is the larger model of a
    distillation. ``replay_validation`` are held-out rows of older rounds. With ``keeping`` the run begins where the
    newest whole checkpoint is, and ends in the same bits as if it had never been interrupted.

    Raises GraftworkError with code ``training_diverged`` when the loss is no number any more and ``out_of_memory`` when
    not even one row at a time fits, ConfigurationError when the base has no module to adapt, Stopped when somebody
    asked for it. In each case ``folder`` stays as it was.
    """
    if config.method == "kto":
        rows = objectives.mixed(rows, config.seed)
    longest = max(len(row) for row in (*rows, *validation, *replay_validation)) + config.answer_room
    micro = micro_batch(config, longest)
    while True:
        try:
            return _attempt(
                base,
                rows,
                validation,
                config,
                folder,
                on_step,
                parent,
                teacher,
                replay_validation,
                keeping,
                micro,
                run_name,
            )
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            smaller = [size for size in range(1, micro) if config.batch_size % size == 0]
            if not smaller:
                raise GraftworkError(
                    f"Even one row of {longest} tokens at a time does not fit into memory. Give shorter rows "
                    "(--max-length), a lower rank or quantization nf4, or free memory.",
                    code="out_of_memory",
                ) from error
        # Outside the handler: what the failed attempt held is referred to by its traceback.
        micro = smaller[-1]


def _attempt(
    base: BaseInfo,
    rows: Sequence[TokenRow],
    validation: Sequence[TokenRow],
    config: TrainConfig,
    folder: Path,
    on_step: Listener,
    parent: Path | None,
    teacher: BaseInfo | None,
    replay_validation: Sequence[TokenRow],
    keeping: Keeping | None,
    micro: int,
    run_name: str | None,
) -> Metrics:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = precision_of(config, device)
    resumed = checkpoints.newest(keeping.folder) if keeping else None
    watcher = _Watcher(on_step, config, keeping)
    with _quiet(), head.quick(), _scratch(keeping) as scratch, tracking.tracked(config.report_to):
        transformers.set_seed(config.seed)
        # All weights that are trained are float32, as an adapter's are; the forward pass is computed in less.
        bare = load_model(base, dtype="float32" if config.variant == "full" else precision, device=device)
        sources = objectives.Sources(
            tokenizer=Path(base.path, "tokenizer.json"),
            eos_token_ids=base.eos_token_ids,
            anchor=_anchor(bare, base, config),
            teacher=None if teacher is None else load_model(teacher, dtype=precision, device=device),
        )
        model = adapted(bare, base, config, parent)
        measured = {VALIDATION: validation, REPLAY: () if config.asks else replay_validation}
        trainer = objectives.make(
            rows,
            measured,
            config,
            model=model,
            sources=sources,
            callbacks=[watcher],
            micro=micro,
            arguments=_arguments(
                base, len(rows), any(measured.values()), config, scratch, device, precision, micro, keeping, resumed
            )
            | {"run_name": run_name},
        )
        if config.reference == "base" and "ref" in getattr(model, "peft_config", {}):
            model.delete_adapter("ref")  # TRL then takes the model without any adapter
        grafts.in_float32(model)
        watcher.attach(trainer, model, resumed)
        if not watcher.ended:
            trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))
        if watcher.stopped:
            raise Stopped
        watcher.undo_forgetting()
        _check_finite(model)
        _save(model, base, folder, config)
    return watcher.metrics(num_trainable=sum(p.numel() for p in trainable(model)), device=device, precision=precision)


def adapted(
    model: PreTrainedModel, base: BaseInfo, config: TrainConfig, parent: Path | None = None
) -> peft.PeftModel | PreTrainedModel:
    """The base with an adapter to train, fresh or the parent's, whose weights alone are trainable, in float32; or,
    where all are to be trained, the base itself."""
    if config.variant == "full":
        return model.requires_grad_(True)
    if config.quantization == "nf4":
        model = grafts.in_nf4(model)
    grafted = grafts.fresh(model, base, config) if parent is None else grafts.continued(model, parent)
    grafts.quicken(grafted)
    return grafted


_anchors: Final[dict[tuple[object, ...], Anchor]] = {}
"""The last one: the trials of a search, and a run in smaller parts, hold on to the same."""


def _anchor(bare: PreTrainedModel, base: BaseInfo, config: TrainConfig) -> Anchor | None:
    if not config.anchor or config.method not in SUPERVISED:
        return None
    which = (base.digest, config.seed, bare.dtype, bare.device)
    if which not in _anchors:
        tokenizer = tokenizers.Tokenizer.from_file(str(Path(base.path, "tokenizer.json")))
        _anchors.clear()
        _anchors[which] = Anchor.of(bare, tokenizer, seed=config.seed)
    return _anchors[which]


def estimated(base: BaseInfo, rows: Sequence[TokenRow], config: TrainConfig) -> Estimate:
    """What a run on these rows will need on this machine."""
    written = config.answer_room * config.tries * len(rows)
    learned = written or sum(
        sum(label != IGNORED for label in row.labels) if isinstance(row, Tokens) else len(row) for row in rows
    )
    return estimate(
        base,
        config,
        num_tokens=sum(map(len, rows)) * config.tries + written,
        longest=max(map(len, rows)) + config.answer_room,
        num_learned=learned,
        num_written=written,
        precision=precision_of(config),
    )


def fitting(base: BaseInfo, rows: Sequence[TokenRow], config: TrainConfig) -> int:
    """``micro_batch_tokens``, halved while the run would not fit into the memory that is free and that can help: a CPU
    refuses no memory, but kills who has most of it."""
    tokens, longest = config.micro_batch_tokens, max(map(len, rows)) + config.answer_room
    while tokens > longest and estimated(base, rows, dataclasses.replace(config, micro_batch_tokens=tokens)).is_tight:
        tokens //= 2
    return tokens


def micro_batch(config: TrainConfig, longest: int) -> int:
    """Rows in one forward pass: the largest divisor of the batch whose rows, all as long as the longest, stay within
    ``micro_batch_tokens``; at least one. A row of DPO goes through twice, with each of its answers."""
    fitting = max(config.micro_batch_tokens // (longest * (2 if config.method == "dpo" else 1)), 1)
    return max(size for size in range(1, config.batch_size + 1) if config.batch_size % size == 0 and size <= fitting)


def _arguments(
    base: BaseInfo,
    num_rows: int,
    measuring: bool,
    config: TrainConfig,
    scratch: Path,
    device: str,
    precision: str,
    micro: int,
    keeping: Keeping | None,
    resumed: Path | None,
) -> dict[str, Any]:
    return {
        "output_dir": str(scratch),
        "num_train_epochs": config.epochs,
        "per_device_train_batch_size": micro,
        "per_device_eval_batch_size": micro,
        "gradient_accumulation_steps": config.batch_size // micro,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "cosine",
        # Rounded down: a share, as TRL would take it, is rounded up, and the first step of a warm-up has rate zero, so
        # that a run of one step would learn nothing.
        "warmup_steps": int(config.warmup * math.ceil(config.epochs * math.ceil(num_rows / config.batch_size))),
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "activation_checkpointing": base.num_parameters > CHECKPOINTING_ABOVE,
        "use_cpu": device == "cpu",
        "bf16": precision == "bfloat16",
        "eval_strategy": "epoch" if measuring else "no",
        "eval_on_start": measuring and resumed is None,
        "save_strategy": "no" if keeping is None else "steps",
        "save_steps": config.checkpoint_steps,
        "logging_steps": 1,
        # What is no number must be seen, not replaced by the mean of what came before.
        "logging_nan_inf_filter": False,
        "report_to": list(config.report_to) or "none",
        "project": tracking.PROJECT,
        "disable_tqdm": True,
        "dataloader_pin_memory": device != "cpu",
        "seed": config.seed,
    }


def precision_of(config: TrainConfig, device: str | None = None) -> str:
    """Torch's name of what is computed in, on ``device`` or on the one that there is."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if config.precision != "auto":
        return config.precision
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "float32"


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@contextmanager
def _scratch(keeping: Keeping | None) -> Iterator[Path]:
    """Where transformers writes: on the checkpoints' own disk, so that one is published by a rename."""
    if keeping is None:
        with tempfile.TemporaryDirectory(prefix="graftwork-train-") as passing:
            yield Path(passing)
        return
    folder = keeping.folder / ".writing"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Watcher(transformers.TrainerCallback):
    """Turns what the trainer logs into Steps, publishes checkpoints, and ends a run that is to end."""

    def __init__(self, on_step: Listener, config: TrainConfig, keeping: Keeping | None) -> None:
        self._on_step = on_step
        self._config = config
        self._keeping = keeping
        self._began = time.perf_counter()
        self._first_step = 0
        self._tokens_before = 0
        self._last = Step(
            step=0, num_steps=0, loss=None, learning_rate=None, num_tokens=0, seconds=0.0, validation_loss=None
        )
        self._trainer: Any = None
        self._model: Any = None
        self._before: dict[str, torch.Tensor] | None = None
        self._forgot = False
        self._saved: int | None = None
        self.stopped = False
        self.ended = False
        """Before it was resumed: what it forgot stands in its checkpoint, and no step is to follow."""

    def attach(self, trainer: Any, model: peft.PeftModel, resumed: Path | None) -> None:
        self._trainer, self._model = trainer, model
        if resumed is not None and (resumed / BEFORE).is_file():
            self._before = safetensors.torch.load_file(resumed / BEFORE)
        if resumed is not None and (resumed / FORGOT).is_file():
            self._forgot = self.ended = True
            trainer.state = transformers.TrainerState.load_from_json(str(resumed / TRAINER_STATE_NAME))
            self.on_train_begin(None, trainer.state, None)

    # --- what transformers tells ------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._first_step = state.global_step
        logged = [line for line in state.log_history if "num_tokens" in line and "loss" in line]
        if logged:
            self._trainer._total_train_tokens = logged[-1]["num_tokens"]
            self._tokens_before = int(logged[-1]["num_tokens"])
        self._tell(step=state.global_step, num_steps=state.max_steps, num_tokens=self._tokens_before)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self._first_step:
            self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._keeping is not None and self._keeping.should_stop() and state.global_step < state.max_steps:
            self.stopped = True
            control.should_save = control.should_training_stop = True
        if state.global_step >= state.max_steps or state.epoch.is_integer():
            # The end of an epoch saves, after it has measured: a run that is resumed here does not measure again.
            control.should_save = False

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._keeping is not None and self._saved != state.global_step:
            control.should_save = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        if "loss" not in logs:
            return
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise diverged(f"The loss is {loss} at step {state.global_step} of {state.max_steps}")
        self._tell(
            step=state.global_step,
            loss=loss,
            learning_rate=float(logs["learning_rate"]),
            reward=logs.get("reward"),
            num_tokens=int(logs["num_tokens"]),
            seconds=time.perf_counter() - self._began,
        )

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        if (reward := metrics.get("eval_reward")) is not None:
            # GRPO's loss is no measure of anything: it begins at zero, and what is held against what changes.
            self._tell(validation_reward=reward)
        elif (loss := metrics.get(f"eval_{VALIDATION}_loss")) is not None:
            self._tell(validation_loss=loss)
        if (loss := metrics.get(f"eval_{REPLAY}_loss")) is not None and self._bound is not None:
            first = next(line[f"eval_{REPLAY}_loss"] for line in state.log_history if f"eval_{REPLAY}_loss" in line)
            if loss <= first * (1 + self._bound):
                self._before = {
                    name: weight.detach().cpu().clone()
                    for name, weight in self._model.named_parameters()
                    if weight.requires_grad
                }
            else:
                self._forgot = True
                control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self._keeping is not None
        written = Path(args.output_dir, f"checkpoint-{state.global_step}")
        if self._before is not None:
            safetensors.torch.save_file(self._before, written / BEFORE)
            if self._forgot:
                (written / FORGOT).touch()
        self._saved = state.global_step
        checkpoints.publish(written, self._keeping.folder, state.global_step)
        self._keeping.on_checkpoint(state.global_step)

    # --- what comes of it -------------------------------------------------------------------------------------------

    @property
    def _bound(self) -> float | None:
        """By how much the loss on older rounds may rise. DPO's and KTO's losses are no measure of what is forgotten."""
        return self._config.forgetting if self._config.method in ("sft", "weighted_sft", "pretrain") else None

    def undo_forgetting(self) -> None:
        """The weights from before the loss on older rounds rose too far, if it did."""
        if self._forgot and self._before is not None:
            for name, weight in self._model.named_parameters():
                if name in self._before:
                    weight.data.copy_(self._before[name])

    def _tell(self, **changes: Any) -> None:
        self._last = dataclasses.replace(self._last, **changes)
        self._on_step(self._last)

    def metrics(self, *, num_trainable: int, device: str, precision: str) -> Metrics:
        history = self._trainer.state.log_history
        losses = [line["loss"] for line in history if "loss" in line]
        rewards = [line["reward"] for line in history if "loss" in line and "reward" in line]
        rewarded = [line["eval_reward"] for line in history if "eval_reward" in line]
        looks = [line for line in history if f"eval_{VALIDATION}_loss" in line and not rewarded] or [{}]
        replays = [line[f"eval_{REPLAY}_loss"] for line in history if f"eval_{REPLAY}_loss" in line]
        if self._forgot and len(looks) > 1:
            looks.pop()  # at weights that were not kept
        last_tenth = max(len(losses) // 10, 1)
        return Metrics(
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
            base_validation_reward=rewarded[0] if rewarded else None,
            validation_reward=rewarded[-1] if rewarded else None,
            replay_loss_before=replays[0] if replays else None,
            replay_loss=replays[-1] if replays else None,
            ended_early=self._forgot,
            num_trainable=num_trainable,
            device=device,
            precision=precision,
        )


def diverged(what: str) -> GraftworkError:
    """The end of a run that went out of bounds: nothing of it is kept."""
    return GraftworkError(
        f"{what}: the run has diverged, and nothing was written. Try a smaller --learning-rate (a fifth of it), and "
        "look for very long or broken answers in the data.",
        code="training_diverged",
    )


def _check_finite(model: torch.nn.Module) -> None:
    if not all(bool(torch.isfinite(weight).all()) for weight in trainable(model)):
        raise diverged("The last step left weights that are no numbers")


def _save(model: Any, base: BaseInfo, folder: Path, config: TrainConfig) -> None:
    if config.variant == "full":
        whole_model.save(model, base, folder)
        return
    # The folder the base was loaded from means nothing to anybody else.
    model.peft_config["default"].base_model_name_or_path = base.id
    model.save_pretrained(folder, safe_serialization=True, selected_adapters=["default"], save_embedding_layers=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' own progress and advice: what matters reaches the user through the listener."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
