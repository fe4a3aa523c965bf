"""From a method and its rows to the trainer that learns them: which recipe, on what table, in which order."""

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
    """The trainer of the method. ``measured`` are rows to measure the loss on, by name; ``arguments`` are transformers'
    own, for ``micro`` rows in one forward pass."""
    recipe = _RECIPES[config.method](rows, config, micro, sources, base_model_of(model))
    settings = recipe.settings(**arguments)
    # One GPU trains; with more in sight TRL refuses to start unless a distributed launcher shares the rows out.
    settings._n_gpu = min(settings.n_gpu, 1)
    trainer = recipe.trainer(
        model=model,
        args=settings,
        train_dataset=_table(rows, config, micro, weighted=True),
        eval_dataset={name: _table(part, config, micro, weighted=False) for name, part in measured.items() if part}
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
    "kto": kto_recipe,
    "weighted_sft": sft_recipe,
    "pretrain": sft_recipe,
    "distillation": distillation_recipe,
    "grpo": grpo_recipe,
}


def _order(
    rows: Sequence[TokenRow], config: TrainConfig, micro: int, model: Any
) -> LengthGroupedSampler | RepeatSampler:
    lengths = [len(row) for row in rows]
    hard: Sequence[float] | None = None
    if config.curriculum == "short_first":
        hard = lengths
    elif config.curriculum == "easy_first":
        learned = [row for row in rows if isinstance(row, LabeledTokens | PairTokens)]
        hard = difficulties(base_model_of(model).eval(), learned)
    if not config.is_online:
        return LengthGroupedSampler(
            lengths, config.batch_size, config.seed, shuffled=config.method != "kto", difficulties=hard
        )
    questions = config.batch_size // config.completions_per_prompt
    order = LengthGroupedSampler(lengths, questions, config.seed, difficulties=hard)
    return RepeatSampler(
        order, questions=questions, times=config.completions_per_prompt, parts=config.batch_size // micro
    )


def _table(rows: Sequence[TokenRow], config: TrainConfig, micro: int, *, weighted: bool) -> datasets.Dataset:
    columns = {field.name: [getattr(row, field.name) for row in rows] for field in dataclasses.fields(rows[0])}
    weights = columns.pop("weight", None)
    if weights is not None and weighted and len(set(weights)) > 1:
        mean = sum(weights) / len(weights)
        columns["weight"] = [weight / mean for weight in weights]
    if config.method == "kto" and micro > 1:
        # Every question with its neighbour's answer, within the batches as they will be read.
        answers = columns["completion_ids"]
        columns["KL_completion_ids"] = [
            answer
            for start in range(0, len(answers), micro)
            for answer in (*answers[start : start + micro][-1:], *answers[start : start + micro][:-1])
        ]
    return datasets.Dataset.from_dict(columns)
