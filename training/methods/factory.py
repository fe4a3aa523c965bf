"""Construction of the trainer of a method: its recipe, its data sets, and the order of its rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import datasets
import transformers

from graftwork.adapters.learning.methods import TrainingMethod
from graftwork.training.config import TrainConfig
from graftwork.training.data.tokens import LabeledTokens, PairTokens, TokenRow
from graftwork.training.methods.distillation import distillation_recipe
from graftwork.training.methods.dpo import dpo_recipe
from graftwork.training.methods.grpo import grpo_recipe
from graftwork.training.methods.kto import kto_recipe
from graftwork.training.methods.recipe import Recipe, RecipeInputs
from graftwork.training.methods.reference_free import orpo_recipe, simpo_recipe
from graftwork.training.methods.reward_model import reward_model_recipe
from graftwork.training.methods.samplers import LengthGroupedSampler, RepeatSampler
from graftwork.training.methods.sft import sft_recipe
from graftwork.training.model.adapter import base_model_of
from graftwork.training.model.difficulty import difficulties


def make_trainer(
    rows: Sequence[TokenRow],
    measured: dict[str, Sequence[TokenRow]],
    config: TrainConfig,
    *,
    model: Any,
    sources: RecipeInputs,
    callbacks: list[transformers.TrainerCallback],
    micro: int,
    arguments: dict[str, Any],
) -> transformers.Trainer:
    """Build the trainer of ``config.method``.

    Args:
        rows: the training rows; at least one.
        measured: evaluation sets by name. Empty ones are left out.
        config: the configuration of the run.
        model: the model with its adapter, or the whole model.
        sources: further inputs of the method.
        callbacks: callbacks of the trainer.
        micro: number of rows in a forward pass; a divisor of ``config.batch_size``.
        arguments: transformers' training arguments, matching ``micro``.

    Raises:
        InvalidRequest: if there is no reward function of a given name.
        ConfigurationError: if a reward function cannot be imported.
    """
    recipe = _RECIPES[config.method](rows, config, micro, sources, base_model_of(model))
    settings = recipe.settings(**arguments)
    # Train on one GPU: with several visible ones TRL refuses to start without a distributed launcher.
    settings._n_gpu = min(settings.n_gpu, 1)
    trainer = recipe.trainer(
        model=model,
        args=settings,
        train_dataset=_table(rows, config, weighted=True),
        eval_dataset=datasets.DatasetDict(
            {name: _table(part, config, weighted=False) for name, part in measured.items() if part}
        )
        or None,
        callbacks=callbacks,
        **recipe.given,
    )
    for name, value in recipe.also.items():
        setattr(trainer, name, value)
    trainer.order = _order(rows, config, micro, model)
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


_RECIPES: Final[Mapping[TrainingMethod, Callable[..., Recipe]]] = {
    "sft": sft_recipe,
    "dpo": dpo_recipe,
    "orpo": orpo_recipe,
    "simpo": simpo_recipe,
    "kto": kto_recipe,
    "weighted_sft": sft_recipe,
    "pretrain": sft_recipe,
    "distillation": distillation_recipe,
    "grpo": grpo_recipe,
    "reward_model": reward_model_recipe,
}


def _order(
    rows: Sequence[TokenRow], config: TrainConfig, micro: int, model: Any
) -> LengthGroupedSampler | RepeatSampler:
    lengths = [len(row) for row in rows]
    difficulty: Sequence[float] | None = None
    if config.curriculum == "short_first":
        difficulty = lengths
    elif config.curriculum == "easy_first":
        learned = [row for row in rows if isinstance(row, LabeledTokens | PairTokens)]
        difficulty = difficulties(base_model_of(model).eval(), learned)
    if not config.is_online:
        return LengthGroupedSampler(
            lengths, config.batch_size, config.seed, shuffled=config.method != "kto", difficulties=difficulty
        )
    questions = config.batch_size // config.completions_per_prompt
    order = LengthGroupedSampler(lengths, questions, config.seed, difficulties=difficulty)
    return RepeatSampler(
        order, questions=questions, times=config.completions_per_prompt, parts=config.batch_size // micro
    )


def _table(rows: Sequence[TokenRow], config: TrainConfig, *, weighted: bool) -> datasets.Dataset:
    columns = {field.name: [getattr(row, field.name) for row in rows] for field in dataclasses.fields(rows[0])}
    weights = columns.pop("weight", None)
    if weights is not None and weighted and len(set(weights)) > 1:
        mean = sum(weights) / len(weights)
        columns["weight"] = [weight / mean for weight in weights]
    if config.method == "kto":
        # Each prompt with the completion of its neighbour, for KTO's estimate of the KL divergence.
        answers = columns["completion_ids"]
        columns["KL_completion_ids"] = [*answers[-1:], *answers[:-1]]
    return datasets.Dataset.from_dict(columns)
