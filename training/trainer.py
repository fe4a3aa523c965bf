"""One supervised run: token ids in, the two files of a PEFT adapter out. The only place that imports TRL and PEFT.

Knows nothing of files of rows, of names and versions, of the server, nor of the terminal: what happens is told to a
callback, step by step, and what went wrong is an exception. Nothing is written but the finished adapter.
"""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # TRL reports every run otherwise; read once, when the hub is imported

import datasets
import huggingface_hub.constants
import peft
import torch
import transformers
import trl
import trl.trainer.utils
from transformers import PreTrainedModel
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from graftwork.adapters.base import BaseInfo, load_model
from graftwork.adapters.errors import ConfigurationError, GraftworkError
from graftwork.training.config import TrainConfig
from graftwork.training.data.tokens import Tokens
from graftwork.training.progress import Listener, Metrics, Step

# Something else may have imported the hub's library before the line above.
huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True

CHECKPOINTING_ABOVE = 1_000_000_000
"""Parameters of a base above which activations are computed again in the backward pass instead of kept. Below,
``micro_batch_tokens`` keeps them small, and keeping them saves a second forward pass."""


def train(
    base: BaseInfo,
    rows: Sequence[Tokens],
    validation: Sequence[Tokens],
    config: TrainConfig,
    folder: Path,
    on_step: Listener,
) -> Metrics:
    """Train a fresh adapter on ``rows`` and write adapter_config.json and adapter_model.safetensors into ``folder``.

    Raises GraftworkError with code ``training_diverged`` when the loss is no number any more, ConfigurationError when
    the base has no module to adapt. In either case ``folder`` stays as it was.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = _precision(config, device)
    watcher = _Watcher(on_step)
    with _quiet(), _head_on_learned_tokens_only(), tempfile.TemporaryDirectory(prefix="graftwork-train-") as scratch:
        transformers.set_seed(config.seed)
        model = adapted(load_model(base, dtype=precision, device=device), base, config)
        arguments = _arguments(base, rows, validation, config, Path(scratch), device=device, precision=precision)
        # One GPU trains; with more in sight TRL refuses to start unless a distributed launcher shares the rows out.
        arguments._n_gpu = min(arguments.n_gpu, 1)
        trainer = trl.SFTTrainer(
            model=model,
            args=arguments,
            train_dataset=_table(rows),
            eval_dataset=_table(validation) if validation else None,
            # TRL wants a tokenizer; every row comes as token ids, so it is never asked anything.
            processing_class=transformers.PreTrainedTokenizerFast(
                tokenizer_file=str(Path(base.path, "tokenizer.json"))
            ),
            # Padding is masked and never learned: any id will do.
            data_collator=DataCollatorForLanguageModeling(pad_token_id=0),
            callbacks=[watcher],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
        _check_finite(model)
        _save(model, base, folder)
    return watcher.metrics(num_trainable=sum(p.numel() for p in trainable(model)), device=device, precision=precision)


def adapted(model: PreTrainedModel, base: BaseInfo, config: TrainConfig) -> peft.PeftModel:
    """The base with a fresh adapter grafted on, whose weights alone are trainable, in float32."""
    lora = peft.LoraConfig(
        task_type=peft.TaskType.CAUSAL_LM,
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules="all-linear" if config.targets == "all-linear" else list(config.targets),
    )
    try:
        grafted = peft.get_peft_model(model, lora)
    except ValueError as error:
        raise ConfigurationError(
            f"{base.id} has no module that targets={config.targets!r} names ({error}).", param="targets"
        ) from error
    for weight in trainable(grafted):
        # In bfloat16 most of an adapter's small steps round to nothing.
        weight.data = weight.data.float()
    if not trainable(grafted):
        raise ConfigurationError(
            f"Nothing of {base.id} would be trained with targets={config.targets!r}.", param="targets"
        )
    return grafted


def trainable(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The parameters that training moves."""
    return [weight for weight in model.parameters() if weight.requires_grad]


def micro_batch(config: TrainConfig, longest: int) -> int:
    """Rows in one forward pass: the largest divisor of the batch whose rows, all as long as the longest, stay within
    ``micro_batch_tokens``; at least one."""
    fitting = max(config.micro_batch_tokens // longest, 1)
    return max(size for size in range(1, config.batch_size + 1) if config.batch_size % size == 0 and size <= fitting)


def _arguments(
    base: BaseInfo,
    rows: Sequence[Tokens],
    validation: Sequence[Tokens],
    config: TrainConfig,
    scratch: Path,
    *,
    device: str,
    precision: str,
) -> trl.SFTConfig:
    micro = micro_batch(config, max(len(tokens.input_ids) for tokens in (*rows, *validation)))
    return trl.SFTConfig(
        output_dir=str(scratch),
        # The rows are token ids with labels, made by the function that serving uses: TRL must not template them again.
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=micro,
        gradient_accumulation_steps=config.batch_size // micro,
        train_sampling_strategy="group_by_length",
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        # Rounded down: a share, as TRL would take it, is rounded up, and the first step of a warm-up has rate zero, so
        # that a run of one step would learn nothing.
        warmup_steps=int(config.warmup * math.ceil(config.epochs * math.ceil(len(rows) / config.batch_size))),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        activation_checkpointing=base.num_parameters > CHECKPOINTING_ABOVE,
        use_cpu=device == "cpu",
        bf16=precision == "bfloat16",
        eval_strategy="epoch" if validation else "no",
        eval_on_start=bool(validation),
        save_strategy="no",
        logging_steps=1,
        # What is no number must be seen, not replaced by the mean of what came before.
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=device != "cpu",
        seed=config.seed,
    )


def _precision(config: TrainConfig, device: str) -> str:
    if config.precision != "auto":
        return config.precision
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "float32"


def _table(rows: Sequence[Tokens]) -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {
            "input_ids": [tokens.input_ids for tokens in rows],
            "labels": [tokens.labels for tokens in rows],
            "length": [len(tokens.input_ids) for tokens in rows],
        }
    )


class _Watcher(transformers.TrainerCallback):
    """Turns what the trainer logs into Steps, and ends a run whose loss is no number any more."""

    def __init__(self, on_step: Listener) -> None:
        self._on_step = on_step
        self._began = time.perf_counter()
        self._last = Step(
            step=0, num_steps=0, loss=None, learning_rate=None, num_tokens=0, seconds=0.0, validation_loss=None
        )
        self._losses: list[float] = []
        self._validation: list[dict[str, float]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tell(num_steps=state.max_steps)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self._began = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        if "loss" not in logs:
            return
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise diverged(f"The loss is {loss} at step {state.global_step} of {state.max_steps}")
        self._losses.append(loss)
        self._tell(
            step=state.global_step,
            loss=loss,
            learning_rate=float(logs["learning_rate"]),
            num_tokens=int(logs["num_tokens"]),
            seconds=time.perf_counter() - self._began,
        )

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        self._validation.append(metrics)
        self._tell(validation_loss=metrics["eval_loss"])

    def _tell(self, **changes: Any) -> None:
        self._last = dataclasses.replace(self._last, **changes)
        self._on_step(self._last)

    def metrics(self, *, num_trainable: int, device: str, precision: str) -> Metrics:
        last_tenth = self._losses[-max(len(self._losses) // 10, 1) :]
        first, last = (self._validation[0], self._validation[-1]) if self._validation else ({}, {})
        return Metrics(
            num_steps=self._last.step,
            num_tokens=self._last.num_tokens,
            seconds=time.perf_counter() - self._began,
            first_loss=self._losses[0],
            last_loss=sum(last_tenth) / len(last_tenth),
            base_validation_loss=first.get("eval_loss"),
            validation_loss=last.get("eval_loss"),
            validation_token_accuracy=last.get("eval_mean_token_accuracy"),
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


def _save(model: peft.PeftModel, base: BaseInfo, folder: Path) -> None:
    # The folder the base was loaded from means nothing to anybody else.
    model.peft_config["default"].base_model_name_or_path = base.id
    model.save_pretrained(folder, safe_serialization=True, selected_adapters=["default"], save_embedding_layers=False)


@contextmanager
def _head_on_learned_tokens_only() -> Iterator[None]:
    """TRL multiplies only the learned positions with the vocabulary where it has a Triton kernel; elsewhere it takes
    all of them, lest an ahead-of-time compiler meet new shapes. Nothing is compiled here, and with answers of a few
    tokens after long prompts, the whole vocabulary at every position is most of a step on a CPU. The name is the pinned
    TRL's, and a test holds it to that."""
    there = trl.trainer.utils._use_triton
    trl.trainer.utils._use_triton = lambda device: True
    try:
        yield
    finally:
        trl.trainer.utils._use_triton = there


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
