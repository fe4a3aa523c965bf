"""Training of one run, from tokenized rows to a PEFT folder."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from graftwork.training.run import tracking

os.environ.update(tracking.SILENT)  # otherwise TRL sends telemetry for each run
# Where bitsandbytes is installed PEFT imports it, and it torch's compiler: two seconds for what no run uses.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
import huggingface_hub.constants
import peft
import tokenizers
import torch
import transformers
from transformers import PreTrainedModel

from graftwork.adapters.base import BaseInfo, load_model
from graftwork.adapters.errors import GraftworkError
from graftwork.adapters.learning.methods import SUPERVISED
from graftwork.clients.client import Client
from graftwork.training.config import TrainConfig
from graftwork.training.data.tokens import TokenRow
from graftwork.training.methods import factory, kto, recipe
from graftwork.training.model import adapter, head, whole_model
from graftwork.training.model.adapter import trainable_parameters
from graftwork.training.model.anchor import PASSAGES, Anchor
from graftwork.training.model.precision import compute_precision
from graftwork.training.run import checkpoints
from graftwork.training.run.callback import REPLAY, VALIDATION, RunCallback, diverged
from graftwork.training.run.checkpoints import Checkpointing, RunStopped
from graftwork.training.run.estimate import micro_batch_size
from graftwork.training.run.progress import RunMetrics, StepListener

# huggingface_hub may have been imported before the environment was changed.
huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True

CHECKPOINTING_ABOVE = 1_000_000_000
"""Number of parameters of a base above which activation checkpointing is used. For smaller bases
``micro_batch_tokens`` limits activations enough, and keeping them saves a second forward pass."""


def train(
    base: BaseInfo,
    rows: Sequence[TokenRow],
    validation: Sequence[TokenRow],
    config: TrainConfig,
    folder: Path,
    on_step: StepListener,
    *,
    parent: Path | None = None,
    teacher: BaseInfo | None = None,
    replay_validation: Sequence[TokenRow] = (),
    keeping: Checkpointing | None = None,
    run_name: str | None = None,
    client: Client | None = None,
) -> RunMetrics:
    """Train an adapter and write ``adapter_config.json`` and ``adapter_model.safetensors``; for variant ``full``, train
    all weights and write the folder of a model.

    If a step does not fit into memory, the run starts again with a smaller micro-batch.

    Args:
        base: the base.
        rows: the training rows, tokenized for the method.
        validation: validation rows, evaluated before training and after each epoch.
        config: the configuration.
        folder: the folder to write the result to; it must exist.
        on_step: called after each step.
        parent: PEFT folder of the version that is trained further; None for a fresh adapter.
        teacher: the teacher of a distillation.
        replay_validation: held-out rows of earlier rounds, evaluated like ``validation``.
        keeping: how checkpoints are saved; None saves none. The run resumes from the newest checkpoint, and its result
            has the same bits as that of an uninterrupted run.
        run_name: name of the run in trackers.
        client: the client of the server whose models grade answers; only needed for graders that ask one.

    Returns:
        The metrics of the run.

    Raises:
        GraftworkError: with code ``training_diverged`` if the loss or a weight is not finite, ``out_of_memory`` if not
            even one row fits, ``tracker_failed`` or ``reward_failed``. Nothing is written to ``folder``.
        ConfigurationError: if the base has no module to adapt.
        RunStopped: if the run was asked to stop.
    """
    if config.method == "kto":
        rows = kto.shuffle_for_kto(rows, config.seed)
    longest = max(len(row) for row in (*rows, *validation, *replay_validation)) + config.max_generated_tokens
    micro = micro_batch_size(config, longest)
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
                client,
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
        # Outside of the handler, where the traceback no longer refers to the memory of the failed attempt.
        micro = smaller[-1]


def _attempt(
    base: BaseInfo,
    rows: Sequence[TokenRow],
    validation: Sequence[TokenRow],
    config: TrainConfig,
    folder: Path,
    on_step: StepListener,
    parent: Path | None,
    teacher: BaseInfo | None,
    replay_validation: Sequence[TokenRow],
    keeping: Checkpointing | None,
    micro: int,
    run_name: str | None,
    client: Client | None,
) -> RunMetrics:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = compute_precision(config, device)
    resumed = checkpoints.newest(keeping.folder) if keeping else None
    callback = RunCallback(on_step, config, keeping)
    with _quiet(), head.fast_loss_head(), _scratch(keeping) as scratch, tracking.tracked(config.report_to):
        transformers.set_seed(config.seed)
        # Trained weights are float32; the forward pass is computed in ``precision``.
        bare = load_model(base, dtype="float32" if config.variant == "full" else precision, device=device)
        sources = recipe.RecipeInputs(
            tokenizer=Path(base.path, "tokenizer.json"),
            eos_token_ids=base.eos_token_ids,
            anchor=_anchor(bare, base, config, len(rows)),
            teacher=None if teacher is None else load_model(teacher, dtype=precision, device=device),
            client=client,
        )
        model = prepare_model(bare, base, config, parent)
        measured = {VALIDATION: validation, REPLAY: () if config.is_online else replay_validation}
        trainer = factory.make_trainer(
            rows,
            measured,
            config,
            model=model,
            sources=sources,
            callbacks=[callback],
            micro=micro,
            arguments=_arguments(
                base, len(rows), any(measured.values()), config, scratch, device, precision, micro, keeping, resumed
            )
            | {"run_name": run_name},
        )
        if config.reference == "base" and "ref" in getattr(model, "peft_config", {}):
            model.delete_adapter("ref")  # TRL then uses the model without adapters as reference
        adapter.cast_trainable_to_float32(model)
        callback.attach(trainer, model, resumed)
        if not callback.ended:
            trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))
        if callback.stopped:
            raise RunStopped
        callback.undo_forgetting()
        _check_finite(model)
        _save(model, base, folder, config)
    return callback.metrics(
        num_trainable=sum(p.numel() for p in trainable_parameters(model)), device=device, precision=precision
    )


def prepare_model(
    model: PreTrainedModel, base: BaseInfo, config: TrainConfig, parent: Path | None = None
) -> peft.PeftModel | PreTrainedModel:
    """Prepare a base for training: with a fresh adapter or that of a parent, whose weights only are trainable, in
    float32; for variant ``full``, with all weights trainable.

    Args:
        model: the base model; it is changed in place.
        base: what is known of the base.
        config: the configuration of the run.
        parent: PEFT folder of the version that is trained further.

    Raises:
        ConfigurationError: if the base has no module to adapt, or the parent has nothing to train.
    """
    if config.variant == "full":
        return model.requires_grad_(True)
    if config.quantization == "nf4":
        model = adapter.quantize_nf4(model)
    grafted = adapter.add_adapter(model, base, config) if parent is None else adapter.load_adapter(model, parent)
    adapter.use_fused_lora(grafted)
    return grafted


_anchors: Final[dict[tuple[object, ...], Anchor]] = {}
"""Cache of the last anchor, which the trials of a search share, and the attempts with smaller micro-batches."""


def _anchor(bare: PreTrainedModel, base: BaseInfo, config: TrainConfig, num_rows: int) -> Anchor | None:
    if not config.anchor or config.method not in SUPERVISED:
        return None
    num_steps = math.ceil(config.epochs * math.ceil(num_rows / config.batch_size))
    which = (base.digest, config.seed, bare.dtype, bare.device, min(num_steps, PASSAGES))
    if which not in _anchors:
        tokenizer = tokenizers.Tokenizer.from_file(str(Path(base.path, "tokenizer.json")))
        _anchors.clear()
        _anchors[which] = Anchor.of(bare, tokenizer, seed=config.seed, num_steps=num_steps)
    return _anchors[which]


def _arguments(
    base: BaseInfo,
    num_rows: int,
    measuring: bool,
    config: TrainConfig,
    scratch: Path,
    device: str,
    precision: str,
    micro: int,
    keeping: Checkpointing | None,
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
        # Rounded down: TRL rounds a ratio up, and as the first step of a warm-up has rate 0, a run of one step would
        # learn nothing.
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
        # A loss that is not finite must be reported, not replaced by the previous mean.
        "logging_nan_inf_filter": False,
        "report_to": list(config.report_to) or "none",
        "project": tracking.PROJECT,
        "disable_tqdm": True,
        "dataloader_pin_memory": device != "cpu",
        "seed": config.seed,
    }


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@contextmanager
def _scratch(keeping: Checkpointing | None) -> Iterator[Path]:
    """Yield the output folder of transformers, on the file system of the checkpoints, as a rename publishes them."""
    if keeping is None:
        with tempfile.TemporaryDirectory(prefix="graftwork-train-") as temporary:
            yield Path(temporary)
        return
    folder = keeping.folder / ".writing"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_finite(model: torch.nn.Module) -> None:
    if not all(bool(torch.isfinite(weight).all()) for weight in trainable_parameters(model)):
        raise diverged("The last step left weights that are no numbers")


def _save(model: Any, base: BaseInfo, folder: Path, config: TrainConfig) -> None:
    if config.variant == "full":
        whole_model.save_whole_model(model, base, folder)
        return
    # The id of the base, since the folder that it was loaded from is local.
    model.peft_config["default"].base_model_name_or_path = base.id
    model.save_pretrained(folder, safe_serialization=True, selected_adapters=["default"], save_embedding_layers=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the libraries' own progress bars and warnings; the step listener reports the progress."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
